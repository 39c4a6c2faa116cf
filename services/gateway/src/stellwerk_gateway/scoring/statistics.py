"""What the router has counted, for operators: a page per endpoint, and OpenTelemetry metrics.

Each gateway process counts for itself, from its start: who asks several adds them up, and
tells a new process by its `process`.
"""

import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider

from stellwerk_gateway.scoring import access
from stellwerk_gateway.scoring.counters import Counters
from stellwerk_gateway.scoring.deployment import Deployment
from stellwerk_gateway.scoring.histograms import histograms
from stellwerk_gateway.scoring.router import Router
from stellwerk_gateway.scoring.routes import Endpoint, RouteTable
from stellwerk_platform import names, telemetry
from stellwerk_platform.errors import InvalidArgument, NotFound
from stellwerk_platform.identity import Identity
from stellwerk_platform.settings import Settings

PATH = re.compile(r"/endpoints/([^/]+)/([^/]+)/statistics")
_PERMISSION = "endpoint.read"
_SCOPE = "stellwerk.scoring"
_STARTED = datetime.now(UTC).isoformat(timespec="seconds")
# What tells this process from all others, as long as they live.
PROCESS = f"{socket.gethostname()}:{os.getpid()}"


async def page(router: Router, workspace: str, endpoint_id: str, authorization: str) -> dict[str, Any]:
    """The counts of one endpoint; raises `PlatformError`."""
    try:
        name = access.endpoint_name(workspace, endpoint_id)
    except InvalidArgument as error:
        raise NotFound("ENDPOINT_NOT_FOUND", error.message, error.cure) from error
    await router.access.check(authorization, name, _PERMISSION)
    endpoint = router.endpoint(name)
    if endpoint is None:
        raise NotFound("ENDPOINT_NOT_FOUND", f"There is no endpoint {name}.", "List the endpoints.")
    return {
        "endpoint": name,
        "process": PROCESS,
        "started": _STARTED,
        "refused": endpoint.refused.document(),
        "deployments": {item.id: _deployment(item) for item in endpoint.deployments.values()},
    }


def _deployment(deployment: Deployment) -> dict[str, Any]:
    return {
        **deployment.counters.document(),
        "in_flight": deployment.in_flight,
        "queued": deployment.queued,
        "replicas": [
            {
                "name": replica.name,
                "in_flight": replica.in_flight,
                "out": replica.is_out,
                "usage": asdict(replica.usage),
            }
            for replica in deployment.replicas
        ],
    }


class Metrics:
    """Exports the counts of all endpoints by OTLP, if a sink is set."""

    def __init__(self, settings: Settings, table: RouteTable, identity: Identity | None = None) -> None:
        self._table = table
        self._provider = telemetry.meter_provider("gateway", settings, identity, lambda: histograms(table))
        if self._provider is not None:
            self._declare(self._provider)

    def close(self) -> None:
        """Sends what is left, for at most two seconds."""
        if self._provider is not None:
            self._provider.shutdown(2_000)

    def _declare(self, provider: MeterProvider) -> None:
        meter = provider.get_meter(_SCOPE)
        meter.create_observable_counter(f"{_SCOPE}.refused", [self._refused], "{request}")
        for name, unit, read in _COUNTERS:
            meter.create_observable_counter(f"{_SCOPE}.{name}", [self._callback(read)], unit)
        for name, unit, read in _GAUGES:
            meter.create_observable_gauge(f"{_SCOPE}.{name}", [self._callback(read)], unit)

    def _refused(self, _options: CallbackOptions) -> Iterator[Observation]:
        for endpoint in list(self._table.endpoints.values()):
            for code, number in endpoint.refused.codes.copy().items():
                yield Observation(number, {"endpoint": endpoint.name, "code": code})

    def _callback(self, read: "Read") -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_options: CallbackOptions) -> Iterator[Observation]:
            for endpoint in list(self._table.endpoints.values()):
                for deployment in list(endpoint.deployments.values()):
                    labels = {"endpoint": endpoint.name, "deployment": deployment.id}
                    for value, more in read(endpoint, deployment, deployment.counters):
                        yield Observation(value, {**labels, **more})

        return observe


# Values with the labels that they have beyond endpoint and deployment. The exporter's thread reads them
# while the loop counts, so what grows is copied first.
Read = Callable[[Endpoint, Deployment, Counters], Iterable[tuple[float, dict[str, str | int]]]]


def _used(name: str) -> "Read":
    """One field of `Usage`, by replica."""

    def read(
        _endpoint: Endpoint, deployment: Deployment, _counters: Counters
    ) -> Iterator[tuple[float, dict[str, str | int]]]:
        for replica in list(deployment.replicas):
            yield getattr(replica.usage, name), {"replica": names.id_of(replica.name)}

    return read


_COUNTERS: list[tuple[str, str, Read]] = [
    ("requests", "{request}", lambda e, d, c: [(n, {"code": code}) for code, n in c.codes.copy().items()]),
    ("retries", "{request}", lambda e, d, c: [(c.retries, {})]),
    ("ejections", "{replica}", lambda e, d, c: [(c.ejections, {})]),
    ("mirrored", "{request}", lambda e, d, c: [(c.mirrored, {})]),
    ("mirror_dropped", "{request}", lambda e, d, c: [(c.mirror_dropped, {})]),
    ("cold_starts", "{start}", lambda e, d, c: [(c.cold_starts, {})]),
    ("cold_start.wait", "s", lambda e, d, c: [(c.cold_start_seconds, {})]),
    ("replica.cpu.time", "s", _used("cpu_seconds")),
]
_GAUGES: list[tuple[str, str, Read]] = [
    ("in_flight", "{request}", lambda e, d, c: [(d.in_flight, {})]),
    ("queued", "{request}", lambda e, d, c: [(d.queued, {})]),
    ("replicas", "{replica}", lambda e, d, c: [(sum(not r.is_out for r in list(d.replicas)), {})]),
    ("replica.memory", "By", _used("memory_bytes")),
]
