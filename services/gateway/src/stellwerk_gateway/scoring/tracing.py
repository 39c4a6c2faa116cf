"""W3C trace context for scoring: every request has one, a few are recorded.

A span costs as much as the rest of the router, so a request is recorded if its caller's
trace is, and else only a few each second.
"""

import random
import re
import time

from opentelemetry.trace import Span, SpanKind, StatusCode

from stellwerk_platform import telemetry

_PARENT = re.compile(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_NOBODY = b"0" * 32
_SAMPLED = 1


class Tracer:
    """Decides which requests are recorded: all of a recorded trace, else `per_second` of the others."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._credit = per_second
        self._time = time.monotonic()

    def begin(self, name: str, parent: bytes, request_id: str) -> tuple[bytes, Span | None]:
        """The `traceparent` to send on, and the span to end if the request is recorded."""
        match = _PARENT.fullmatch(parent) if parent else None
        if match is not None and match[1] != _NOBODY:
            if not int(match[3], 16) & _SAMPLED:
                return parent, None
        elif not self._may_start():
            return _unrecorded(), None
        else:
            parent = b""
        span = telemetry.tracer.start_span(
            name,
            telemetry.context_from(parent.decode()),
            kind=SpanKind.SERVER,
            attributes={"request.id": request_id},
        )
        context = span.get_span_context()
        if not context.is_valid:
            return _unrecorded(), None
        own = b"00-%032x-%016x-%02x" % (context.trace_id, context.span_id, context.trace_flags)
        return own, span if span.is_recording() else None

    def _may_start(self) -> bool:
        now = time.monotonic()
        self._credit = min(self._per_second, self._credit + (now - self._time) * self._per_second)
        self._time = now
        if self._credit < 1:
            return False
        self._credit -= 1
        return True


def _unrecorded() -> bytes:
    return b"00-%032x-%016x-00" % (random.getrandbits(128) or 1, random.getrandbits(64) or 1)


def end(span: Span, status: int, reason: str = "", endpoint: str = "", deployment: str = "") -> None:
    """Ends the span of an answered request; it says what it was of as metrics do, where that is known."""
    span.set_attribute("http.response.status_code", status)
    for name, value in (("endpoint", endpoint), ("deployment", deployment)):
        if value:
            span.set_attribute(name, value)
    if status >= 500:
        span.set_status(StatusCode.ERROR, reason)
    span.end()
