"""Bodies of requests: unpacked within bounds, or made of query parameters."""

import asyncio
import json
import zlib
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qs

from stellwerk_platform.errors import InvalidArgument
from stellwerk_scorer.domain import PayloadTooLarge, UnsupportedMediaType

# Larger ones are unpacked beside the network loop.
_INLINE_BYTES = 16 << 10
# zlib's window bits: with a gzip head, with a zlib head
_WINDOWS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
_MAX_PARAMETERS = 1000


async def unpack(body: bytes, encoding: str, limit: int) -> bytes:
    """The body without its content encoding; raises `PlatformError`, also for one that grows too large."""
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    window = _WINDOWS.get(encoding)
    if window is None:
        raise UnsupportedMediaType(
            "CONTENT_ENCODING_UNSUPPORTED", f"The body is encoded as {encoding[:50]}.", "Use gzip, or none."
        )
    if len(body) <= _INLINE_BYTES:
        # Deflate makes at most 1,032 bytes of one: this takes some milliseconds.
        return _inflate(body, window, limit)
    return await asyncio.to_thread(_inflate, body, window, limit)


def _inflate(body: bytes, window: int, limit: int) -> bytes:
    parts: list[bytes] = []
    size, rest = 0, body
    try:
        while rest:
            unpacker = zlib.decompressobj(window)
            part = unpacker.decompress(rest, limit + 1 - size)
            size += len(part)
            parts.append(part)
            if size > limit:
                raise PayloadTooLarge(
                    "PAYLOAD_TOO_LARGE",
                    f"The body is larger than {limit} bytes when it is unpacked.",
                    "Send fewer rows a request.",
                )
            if not unpacker.eof:
                raise zlib.error("it ends too early")
            rest = unpacker.unused_data
    except zlib.error as error:
        message = f"The body is not what its content-encoding says: {error}."
        raise InvalidArgument("INVALID_ENCODING", message, "Pack it again, or send it as it is.") from None
    return b"".join(parts)


def query_of(query: bytes) -> dict[str, list[str]]:
    """The parameters of a query; raises `InvalidArgument`."""
    try:
        return parse_qs(query.decode("latin-1"), keep_blank_values=True, max_num_fields=_MAX_PARAMETERS)
    except ValueError:
        raise InvalidArgument(
            "INVALID_REQUEST", f"The query has more than {_MAX_PARAMETERS} parameters.", "Use POST."
        ) from None


def from_query(query: bytes) -> bytes:
    """The JSON object that query parameters stand for: each a JSON value, or a text; repeated, a list."""
    document = {
        name: _value(values[0]) if len(values) == 1 else [_value(value) for value in values]
        for name, values in query_of(query).items()
    }
    return json.dumps(document).encode()


def _value(text: str) -> Any:
    try:
        # Not orjson, for which NaN is no number and large ones are floats.
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def is_json(content_type: bytes) -> bool:
    """Whether a content type is JSON's or one built on it."""
    kind = content_type.partition(b";")[0].strip().lower()
    return kind == b"application/json" or (kind.startswith(b"application/") and kind.endswith(b"+json"))


def lines(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Header lines."""
    return b"".join(b"%b: %b\r\n" % pair for pair in pairs)
