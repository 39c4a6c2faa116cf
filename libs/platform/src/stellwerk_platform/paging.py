"""Page tokens: opaque, bound to their query, refused when they come from another one."""

import base64
import binascii
import hashlib
import json
from typing import Any

from stellwerk_platform.errors import InvalidArgument

DEFAULT_SIZE = 100
MAXIMUM_SIZE = 1_000
# A message of gRPC has 16 MiB at most, and what is encoded again, as JSON for example, grows.
_PAGE_BYTES = 8 * 1024 * 1024


def page_size(requested: int, maximum: int = MAXIMUM_SIZE) -> int:
    """The number of items to return; raises `InvalidArgument` for a negative size."""
    if requested < 0:
        raise InvalidArgument(
            "INVALID_PAGE_SIZE", f"The page size {requested} is negative.", "Use 0 or more."
        )
    return min(requested or min(DEFAULT_SIZE, maximum), maximum)


class Room:
    """What fits on one page: `size` items, and 8 MiB unless the first one alone has more."""

    def __init__(self, size: int) -> None:
        self._items = size
        self._bytes = _PAGE_BYTES
        self._is_empty = True

    def take(self, size_bytes: int) -> bool:
        """Whether one more item of so many bytes fits."""
        self._items -= 1
        self._bytes -= size_bytes
        fits = self._items >= 0 and (self._bytes >= 0 or self._is_empty)
        self._is_empty = False
        return fits


def encode(position: Any, *query: object) -> str:
    """A token that continues the query after `position` (any JSON value)."""
    text = json.dumps([_digest(query), position], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode(token: str, *query: object) -> Any:
    """The position in a token, None for an empty one; raises `InvalidArgument` for a foreign one."""
    if not token:
        return None
    try:
        digest, position = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    except (ValueError, TypeError, binascii.Error):
        digest, position = "", None
    if digest != _digest(query):
        raise InvalidArgument(
            "INVALID_PAGE_TOKEN",
            "The page token does not belong to this query.",
            "Use the token from the last answer to the same query, or leave it out to start again.",
        )
    return position


def _digest(query: tuple[object, ...]) -> str:
    return hashlib.sha256(repr(query).encode()).hexdigest()[:12]
