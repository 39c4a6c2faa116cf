"""The root span of a command, exported to Stellwerk's own OTLP door.

OpenTelemetry is imported only when a command changes something. Whatever fails here fails silently:
telemetry never breaks or delays a command by more than two seconds.
"""

import contextlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from stellwerk.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

FLUSH_MS = 2_000
_provider: "TracerProvider | None" = None


@contextlib.contextmanager
def root_span(name: str, settings: Settings) -> Iterator[None]:
    """A span around a command; without address or key there is none."""
    if not settings.grpc_address or not settings.api_key:
        yield
        return
    tracer = _start(settings).get_tracer("stellwerk.cli")
    with tracer.start_as_current_span(name, record_exception=False):
        yield


def flush() -> None:
    """Sends what was recorded."""
    global _provider
    provider, _provider = _provider, None
    if provider is not None:
        with contextlib.suppress(Exception):
            provider.force_flush(FLUSH_MS)


def _start(settings: Settings) -> "TracerProvider":
    global _provider
    if _provider is not None:
        return _provider
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    _provider = TracerProvider(resource=Resource.create({SERVICE_NAME: "cli"}), shutdown_on_exit=False)
    secure = settings.grpc_address.startswith("https://")
    exporter = OTLPSpanExporter(
        endpoint=settings.grpc_address if secure else f"http://{settings.grpc_address}",
        insecure=not secure,
        headers={"authorization": f"Bearer {settings.api_key}"},
        timeout=FLUSH_MS / 1_000,
    )
    _provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=300))
    trace.set_tracer_provider(_provider)
    return _provider
