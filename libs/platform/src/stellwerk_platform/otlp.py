"""Exporters of OTLP over gRPC, begun anew with each certificate: OpenTelemetry's take one at their start.

An `https://` endpoint is the port of `telemetry` itself, which wants a certificate; `http://` is a
door that wants the key alone.
"""

from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, MetricsData
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

    def __init__(self, make: Callable[..., E], settings: Settings, identity: Identity | None) -> None:
        self._make = make
        self._settings = settings
        self._identity = identity if settings.otlp_endpoint.startswith("https://") else None
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
            endpoint=self._settings.otlp_endpoint,
            insecure=self._settings.otlp_endpoint.startswith("http://"),
            headers={"authorization": f"Bearer {self._settings.otlp_key}"},
            timeout=_TIMEOUT_SECONDS,
            **options,
        )


class Spans(SpanExporter):
    """Sends spans."""

    def __init__(self, settings: Settings, identity: Identity | None) -> None:
        self._renewed = _Renewed(OTLPSpanExporter, settings, identity)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """As the exporter with the newest certificate."""
        return self._renewed.newest().export(spans)

    def shutdown(self) -> None:
        """Ends it."""
        self._renewed.shutdown()


class Metrics(MetricExporter):
    """Sends metrics."""

    def __init__(self, settings: Settings, identity: Identity | None) -> None:
        super().__init__()
        self._renewed = _Renewed(OTLPMetricExporter, settings, identity)

    def export(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any
    ) -> MetricExportResult:
        """As the exporter with the newest certificate."""
        return self._renewed.newest().export(metrics_data, timeout_millis, **kwargs)

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Nothing is held back here."""
        return True

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Ends it."""
        self._renewed.shutdown()
