"""The little of ASGI that the doors share: types, and whole answers."""

import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from stellwerk_platform.errors import PlatformError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Header = tuple[bytes, bytes]


async def send_json(
    send: Send, status: int, document: dict[str, Any], headers: Sequence[Header] = ()
) -> None:
    """Answers with a JSON document."""
    body = json.dumps(document, separators=(",", ":")).encode()
    await send_response(send, status, [(b"content-type", b"application/json"), *headers], body)


async def send_error(send: Send, error: PlatformError, headers: Sequence[Header] = ()) -> None:
    """Answers with `{error, reason, cure}` and the error's HTTP status."""
    document = {"error": error.message, "reason": error.reason}
    if error.cure:
        document["cure"] = error.cure
    await send_json(send, error.http_status, document, headers)


async def send_response(send: Send, status: int, headers: Sequence[Header], body: bytes) -> None:
    """Answers with a whole body."""
    headers = [*headers, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
