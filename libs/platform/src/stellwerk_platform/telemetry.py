"""OpenTelemetry for a process: one tracer provider, exported by OTLP, and trace context by hand
where no instrumentation carries it (NATS headers, environment variables, journal entries)."""

import logging
from collections.abc import Callable, Sequence

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import Metric, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from stellwerk_platform import otlp
from stellwerk_platform.identity import Identity
from stellwerk_platform.settings import Settings

tracer = trace.get_tracer("stellwerk")
_PROPAGATOR = TraceContextTextMapPropagator()
# Spans travel within this time, so that a trace can be read soon after its work is done.
_EXPORT_DELAY_MS = 500
_METRICS_MS = 15_000


def start(service: str, settings: Settings, identity: Identity | None = None) -> None:
    """Configures logging and, if an endpoint is set, the export of spans."""
    start_log(settings)
    propagate.set_global_textmap(_PROPAGATOR)
    if not settings.otlp_endpoint:
        return
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: service}))
    exporter = otlp.Spans(settings, identity)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=_EXPORT_DELAY_MS))
    trace.set_tracer_provider(provider)


def meter_provider(
    service: str,
    settings: Settings,
    identity: Identity | None = None,
    more: Callable[[], Sequence[Metric]] = tuple,
) -> MeterProvider | None:
    """Where a service makes its metrics, exported every 15 s; None if no endpoint is set.

    `more` gives metrics that no instrument can make; it is called in the exporter's thread.
    """
    if not settings.otlp_endpoint and not settings.otlp_metrics_endpoint:
        return None
    reader = PeriodicExportingMetricReader(otlp.Metrics(settings, identity, more), _METRICS_MS)
    return MeterProvider([reader], Resource.create({SERVICE_NAME: service}))


def start_log(settings: Settings) -> None:
    """Lines on stderr, without those of libraries that would fill it or give secrets away."""
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # Its lines name whole URLs, and a presigned URL is a credential.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # A sink that is down for a moment must not fill the log of every process.
    logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)


def stop() -> None:
    """Sends what is still buffered, for at most two seconds."""
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        provider.force_flush(2_000)
        provider.shutdown()


def traceparent() -> str:
    """The W3C traceparent of the current span, "" without one."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier.get("traceparent", "")


def trace_id() -> str:
    """The current trace id as 32 hexadecimal digits, "" without one."""
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else ""


def context_from(parent: str) -> Context:
    """The context that a traceparent describes, to start spans in."""
    return _PROPAGATOR.extract({"traceparent": parent})
