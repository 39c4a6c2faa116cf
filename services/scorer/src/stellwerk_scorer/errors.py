"""Errors as the HTTP face tells them."""

import logging

import orjson

from stellwerk_platform import telemetry
from stellwerk_platform.errors import Internal, PlatformError, ResourceExhausted, Unavailable, to_status
from stellwerk_scorer.domain import MethodNotAllowed, ScriptFailed, ScriptTimedOut

# Azure's mark of answers for which user code is to blame.
RUN_FAILED = b"x-ms-run-function-failed: true\r\n"

log = logging.getLogger(__name__)


def known(error: Exception) -> PlatformError:
    """The error itself, or for what nobody foresaw one that tells the caller nothing but where to look."""
    if isinstance(error, PlatformError):
        return error
    trace = telemetry.trace_id() or "none"
    log.error("An unexpected error (trace %s)", trace, exc_info=error)
    return Internal("INTERNAL", f"An unexpected error; trace {trace}.", "Report it.")


def document_of(error: PlatformError) -> bytes:
    """The JSON body; `message` is the name that Azure's clients look for."""
    document = {"error": error.message, "message": error.message, "reason": error.reason}
    if error.cure:
        document["cure"] = error.cure
    return orjson.dumps(document)


def headers_of(error: PlatformError) -> bytes:
    """The header lines that go with an error."""
    head = b""
    if isinstance(error, ScriptFailed | ScriptTimedOut):
        head += RUN_FAILED
    if isinstance(error, MethodNotAllowed):
        head += b"allow: %b\r\n" % error.metadata["allow"].encode()
    if isinstance(error, ResourceExhausted) or (isinstance(error, Unavailable) and error.http_status == 503):
        head += b"retry-after: 1\r\n"
    return head


def status_of(error: PlatformError) -> bytes:
    """The serialised `google.rpc.Status`, as gRPC clients get it."""
    return bytes(to_status(error).SerializeToString())
