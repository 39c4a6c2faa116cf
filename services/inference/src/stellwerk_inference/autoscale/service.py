"""LoadService: parse, ask, reply."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from stellwerk_inference.autoscale import domain, simulation
from stellwerk_inference.autoscale.loads import HISTORY_SECONDS, Loads, Second, batch_quantile, quantile_ms
from stellwerk_inference.autoscale.scaler import Autoscaler
from stellwerk_inference.deployments.requests import PATTERN
from stellwerk_inference.endpoints.domain import PATTERN as ENDPOINT_PATTERN
from stellwerk_inference.lifecycle import Lifecycle
from stellwerk_inference.store import Store, endpoint_of, visible
from stellwerk_platform import names
from stellwerk_platform.errors import FailedPrecondition, InvalidArgument
from stellwerk_protos.inference.v1 import endpoints_pb2 as endpoints
from stellwerk_protos.inference.v1 import loads_pb2 as pb
from stellwerk_protos.inference.v1 import loads_pb2_grpc

_MAX_ENDPOINTS = 200
_STARTS_SINCE = timedelta(hours=1)
_MAX_SECONDS, _MAX_ARRIVALS = 86_400, 10_000_000
_MAX_START_SECONDS, _MAX_SERVICE_SECONDS, _MAX_PARALLEL = 3_600.0, 3_600.0, 10_000
_START_SECONDS = 5.0
_WORKERS = ("STELLWERK_SCORER_WORKERS", "WORKER_COUNT")


class LoadService(loads_pb2_grpc.LoadServiceServicer):
    """The servicer."""

    def __init__(self, store: Store, lifecycle: Lifecycle, autoscaler: Autoscaler) -> None:
        self._store = store
        self._lifecycle = lifecycle
        self._autoscaler = autoscaler
        self._loads = autoscaler.loads

    async def ReportLoad(self, request: pb.ReportLoadRequest, context: Any) -> pb.ReportLoadResponse:
        await self._autoscaler.take(request)
        return pb.ReportLoadResponse()

    async def ListLoads(self, request: pb.ListLoadsRequest, context: Any) -> pb.ListLoadsResponse:
        answer = pb.ListLoadsResponse(gateways=self._loads.gateways())
        for endpoint in await self._endpoints(request.parent):
            for deployment in await self._store.deployments.all(visible(endpoint.name)):
                percent = endpoint.traffic.get(names.id_of(deployment.name), 0)
                answer.loads.append(_load(deployment, percent, self._loads))
        answer.loads.sort(key=lambda load: load.deployment)
        starts = await self._store.starts([load.deployment for load in answer.loads], _STARTS_SINCE)
        for load in answer.loads:
            seconds = starts.get(load.deployment, [])
            load.start_count = len(seconds)
            load.start_seconds = sum(seconds) / (len(seconds) or 1)
        return answer

    async def _endpoints(self, parent: str) -> Sequence[endpoints.Endpoint]:
        if parent.count("/") > 1:
            names.parse(ENDPOINT_PATTERN, parent)
            return [await self._store.endpoints.get(parent)]
        names.parse("workspaces/*", parent)
        found, _ = await self._store.endpoints.page(visible(parent), _MAX_ENDPOINTS, "")
        return found

    async def GetLoadHistory(self, request: pb.GetLoadHistoryRequest, context: Any) -> pb.LoadHistory:
        names.parse(PATTERN, request.name)
        if not 0 <= request.seconds <= HISTORY_SECONDS:
            raise InvalidArgument(
                "INVALID_SECONDS", f"{request.seconds} seconds cannot be had.", f"Use 1 to {HISTORY_SECONDS}."
            )
        await self._store.deployments.get(request.name)
        return self._history(request.name, request.seconds or HISTORY_SECONDS)

    def _history(self, name: str, seconds: int) -> pb.LoadHistory:
        arrivals, service_seconds = self._loads.history(name, seconds)
        history = pb.LoadHistory(arrivals=arrivals, service_seconds=service_seconds)
        history.start_time.FromDatetime(datetime.now(UTC) - timedelta(seconds=len(arrivals)))
        return history

    async def SetScaleSettings(
        self, request: pb.SetScaleSettingsRequest, context: Any
    ) -> endpoints.Deployment:
        names.parse(PATTERN, request.name)
        settings = request.scale_settings if request.HasField("scale_settings") else None
        return await self._lifecycle.scale(request.name, lambda d: domain.set_settings(d, settings))

    async def SimulateScaling(
        self, request: pb.SimulateScalingRequest, context: Any
    ) -> pb.SimulateScalingResponse:
        names.parse(PATTERN, request.name)
        settings = domain.Settings.of(request.scale_settings)
        deployment = await self._store.deployments.get(request.name)
        recorded = self._history(request.name, HISTORY_SECONDS)
        load = _checked(request, recorded, deployment)
        start_seconds = request.start_seconds or _START_SECONDS
        outcome = await asyncio.to_thread(simulation.simulate, settings, load, start_seconds)
        return _simulated(outcome)


def _load(deployment: endpoints.Deployment, percent: int, loads: Loads) -> pb.DeploymentLoad:
    recent = loads.recent(deployment.name)
    seconds = len(recent) or 1
    calls = sum(second.calls for second in recent)
    cold_starts, cold_start_ms = loads.cold_starts(deployment.name)
    buckets = [sum(column) for column in zip(*(second.buckets for second in recent), strict=True)]
    batches = sum((second.batches for second in recent), Counter[int]())
    last = recent[-1] if recent else Second()
    return pb.DeploymentLoad(
        deployment=deployment.name,
        rate=sum(second.arrived for second in recent) / seconds,
        failed_rate=sum(second.failed for second in recent) / seconds,
        refused_rate=sum(second.refused for second in recent) / seconds,
        p50_ms=quantile_ms(buckets, 0.5),
        p99_ms=quantile_ms(buckets, 0.99),
        in_flight=last.in_flight,
        queued=last.queued,
        ready_replica_count=deployment.ready_replica_count,
        replica_count=deployment.replica_count,
        percent=percent,
        cpu_percent=100 * sum(second.cpu_seconds for second in recent) / seconds,
        memory_bytes=loads.memory_bytes(deployment.name),
        batch_size=sum(second.called_requests for second in recent) / (calls or 1),
        batch_size_p50=batch_quantile(batches, 0.5),
        batch_size_p95=batch_quantile(batches, 0.95),
        batch_size_max=batch_quantile(batches, 1.0),
        cold_start_count=cold_starts,
        cold_start_ms=cold_start_ms,
    )


def _checked(
    request: pb.SimulateScalingRequest, recorded: pb.LoadHistory, deployment: endpoints.Deployment
) -> simulation.Load:
    """The load to play; raises `InvalidArgument` or `FailedPrecondition`."""
    given = request.load if request.HasField("load") else recorded
    arrivals = list(given.arrivals)
    if len(arrivals) > _MAX_SECONDS or any(not 0 <= count <= _MAX_ARRIVALS for count in arrivals):
        raise InvalidArgument(
            "INVALID_LOAD",
            "The load is too long, or has a count that cannot be.",
            f"Give up to {_MAX_SECONDS:,} seconds with 0 to {_MAX_ARRIVALS:,} requests each.",
        )
    _check_times(request, given)
    service_seconds = given.service_seconds or recorded.service_seconds
    if not any(arrivals) or not service_seconds:
        raise FailedPrecondition(
            "NO_LOAD_RECORDED",
            f"It is not known what load {names.id_of(deployment.name)} has, or how long a request takes.",
            "Send it some requests first, or give a file with the load and `--service-ms`.",
            {"endpoint": endpoint_of(deployment.name)},
        )
    return simulation.Load(arrivals, service_seconds, request.parallel or _workers(deployment))


def _check_times(request: pb.SimulateScalingRequest, load: pb.LoadHistory) -> None:
    for value, limit in (
        (request.start_seconds, _MAX_START_SECONDS),
        (load.service_seconds, _MAX_SERVICE_SECONDS),
        (request.parallel, _MAX_PARALLEL),
    ):
        if not 0 <= value <= limit:
            raise InvalidArgument("INVALID_SIMULATION", f"{value:g} cannot be.", f"Use 0 to {limit:g}.")


def _workers(deployment: endpoints.Deployment) -> int:
    for name in _WORKERS:
        text = deployment.workload.variables.get(name, "")
        if text.isdigit() and int(text) > 0:
            return min(int(text), _MAX_PARALLEL)
    return 1


def _simulated(outcome: simulation.Outcome) -> pb.SimulateScalingResponse:
    requests = sum(step.arrivals for step in outcome.seconds)
    return pb.SimulateScalingResponse(
        seconds=[
            pb.SimulatedSecond(
                replica_count=step.replicas,
                ready_replica_count=step.ready,
                arrivals=step.arrivals,
                queued=step.queued,
            )
            for step in outcome.seconds
        ],
        replica_seconds=outcome.replica_seconds,
        requests=requests,
        mean_queue_ms=1000 * outcome.queue_seconds / requests if requests else 0.0,
        longest_queue_ms=1000 * outcome.longest_queue_seconds,
        decisions=outcome.decisions,
        left_over=outcome.seconds[-1].queued if outcome.seconds else 0.0,
    )
