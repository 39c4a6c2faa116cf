"""Headers of an HTTP request that go on to a service as metadata, which is ASCII and small."""

import re
from collections.abc import Sequence

from stellwerk_gateway.asgi import Header
from stellwerk_gateway.scoring import access
from stellwerk_platform.errors import InvalidArgument

CARRIED = ("authorization", "traceparent", "tracestate", "x-request-id")
_TRACEPARENT = re.compile("[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]{,100})?")
# As much as W3C Trace Context asks to pass on.
_MAX_TRACESTATE_LENGTH = 512
# All metadata of a call have 8 KiB.
_MAX_AUTHORIZATION_LENGTH = 4_096


def carried(headers: Sequence[Header]) -> list[tuple[str, str]]:
    """Authorization, trace and request id; of a header that comes twice the first.

    A trace that cannot go on is left out, as W3C Trace Context says, and a request id gives way to a new
    one. Raises `InvalidArgument` for an authorization that cannot.
    """
    first: dict[str, str] = dict.fromkeys(CARRIED, "")
    for raw_name, value in headers:
        name = raw_name.decode("latin-1")
        if name in first and not first[name]:
            first[name] = value.decode("latin-1").strip()
    if not _is_text(first["authorization"], _MAX_AUTHORIZATION_LENGTH):
        raise InvalidArgument(
            "INVALID_HEADER",
            f"The header authorization is no ASCII text of at most {_MAX_AUTHORIZATION_LENGTH:,} characters.",
            "Send 'authorization: Bearer KEY'.",
        )
    if not _is_text(first["x-request-id"], access.MAX_REQUEST_ID_LENGTH):
        first["x-request-id"] = access.new_request_id()
    if not _TRACEPARENT.fullmatch(first["traceparent"]):
        first["traceparent"] = first["tracestate"] = ""
    if not _is_text(first["tracestate"], _MAX_TRACESTATE_LENGTH):
        first["tracestate"] = ""
    return [(name, value) for name, value in first.items() if value]


def _is_text(value: str, most: int) -> bool:
    return len(value) <= most and value.isascii() and value.isprintable()
