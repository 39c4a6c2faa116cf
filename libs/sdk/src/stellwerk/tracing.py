"""Trace context on the way out: the caller's span if there is one, else a fresh trace id.

With a trace id of its own every request can be looked up later, whether or not the caller traces.
"""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace

_tracer = trace.get_tracer("stellwerk.sdk")


@contextmanager
def client_span(name: str) -> Iterator[tuple[str, str]]:
    """A span around a request; yields its `traceparent` and trace id (32 hexadecimal digits)."""
    with _tracer.start_as_current_span(name, kind=trace.SpanKind.CLIENT, record_exception=False) as span:
        context = span.get_span_context()
        if context.is_valid:
            trace_id = trace.format_trace_id(context.trace_id)
            yield f"00-{trace_id}-{trace.format_span_id(context.span_id)}-{context.trace_flags:02x}", trace_id
        else:
            trace_id = secrets.token_hex(16)
            yield f"00-{trace_id}-{secrets.token_hex(8)}-01", trace_id


@contextmanager
def span(name: str) -> Iterator[None]:
    """A span around work of the client itself."""
    with _tracer.start_as_current_span(name):
        yield
