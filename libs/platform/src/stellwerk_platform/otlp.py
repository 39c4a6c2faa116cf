"""Exporters of OTLP over gRPC, begun anew with each certificate: OpenTelemetry's take one at their start.

An `https://` endpoint is the port of `telemetry` itself, which wants a certificate; `http://` is a
door that wants the key alone. Metrics may have an endpoint of their own, which is a stranger's: it gets no
certificate, and is known by the system's authorities.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import (
    Metric,
    MetricExporter,
    MetricExportResult,
    MetricsData,
)
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from stellwerk_platform.identity import DOMAIN, Identity
from stellwerk_platform.settings import Settings

_TIMEOUT_SECONDS = 5
_CHANNEL_OPTIONS = (("grpc.ssl_target_name_override", f"telemetry.{DOMAIN}"),)


class _Closable(Protocol):
    def shutdown(self) -> None: ...


E = TypeVar("E", bound=_Closable)


class _Renewed(Generic[E]):
    """The exporter with the newest certificate."""

    def __init__(self, make: Callable[..., E], endpoint: str, key: str, identity: Identity | None) -> None:
        self._make = make
        self._endpoint = endpoint
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._identity = identity if endpoint.startswith("https://") else None
        self._generation = 0
        self._exporter = self._begin()

    def newest(self) -> E:
        if self._identity is not None and self._identity.generation != self._generation:
            self._exporter.shutdown()
            self._exporter = self._begin()
        return self._exporter

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def _begin(self) -> E:
        options: dict[str, Any] = {}
        if self._identity is not None:
            self._generation = self._identity.generation
            options = {"credentials": self._identity.channel_credentials()}
            options["channel_options"] = _CHANNEL_OPTIONS
        return self._make(
            endpoint=self._endpoint,
            insecure=self._endpoint.startswith("http://"),
            headers=self._headers,
            timeout=_TIMEOUT_SECONDS,
            **options,
        )


class Spans(SpanExporter):
    """Sends spans."""

    def __init__(self, settings: Settings, identity: Identity | None) -> None:
        self._renewed = _Renewed(OTLPSpanExporter, settings.otlp_endpoint, settings.otlp_key, identity)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """As the exporter with the newest certificate."""
        return self._renewed.newest().export(spans)

    def shutdown(self) -> None:
        """Ends it."""
        self._renewed.shutdown()


class Metrics(MetricExporter):
    """Sends metrics: those of the instruments, and what `more` has counted itself."""

    def __init__(
        self,
        settings: Settings,
        identity: Identity | None,
        more: Callable[[], Sequence[Metric]] = tuple,
    ) -> None:
        super().__init__()
        target = (settings.otlp_endpoint, settings.otlp_key, identity)
        if settings.otlp_metrics_endpoint:
            target = (settings.otlp_metrics_endpoint, settings.otlp_metrics_key, None)
        self._renewed = _Renewed(OTLPMetricExporter, *target)
        self._more = more

    def export(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any
    ) -> MetricExportResult:
        """As the exporter with the newest certificate."""
        return self._renewed.newest().export(self._with_more(metrics_data), timeout_millis, **kwargs)

    def _with_more(self, data: MetricsData) -> MetricsData:
        """Among those of the instruments: a second batch of the same scope would take their place."""
        if not data.resource_metrics:
            return data
        resource, *resources = data.resource_metrics
        scope, *scopes = resource.scope_metrics
        scope = dataclasses.replace(scope, metrics=[*scope.metrics, *self._more()])
        resource = dataclasses.replace(resource, scope_metrics=[scope, *scopes])
        return MetricsData(resource_metrics=[resource, *resources])

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Nothing is held back here."""
        return True

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Ends it."""
        self._renewed.shutdown()
