"""Who may score: the check that HTTP and gRPC share."""

import time
from collections.abc import Awaitable, Callable

from stellwerk_platform.access import allows, denied
from stellwerk_platform.auth import Caller, TokenVerifier, bearer

# Raises `Unauthenticated` or `PermissionDenied` for a token, `Unavailable` if it cannot be checked.
Verify = Callable[[str], Awaitable[Caller]]
_PERMISSION = "endpoint.invoke"
_KNOWN_SECONDS = 30.0
_KNOWN_HEADERS = 1024


def invoker(verifier: TokenVerifier, endpoint: str) -> Verify:
    """Accepts tokens whose role may invoke the endpoint that this replica belongs to."""

    async def verify(token: str) -> Caller:
        caller = await verifier.verify(token)
        if not allows(caller, _PERMISSION, endpoint):
            raise denied(caller, _PERMISSION, endpoint)
        return caller

    return verify


async def anybody(_token: str) -> Caller:
    """Accepts everybody: for local debugging on loopback only."""
    return Caller("users/local", "User", time.time() + _KNOWN_SECONDS)


class Gate:
    """Remembers for half a minute which `authorization` headers were let in, so that most need no wait."""

    def __init__(self, verify: Verify, *, is_open: bool = False) -> None:
        self._verify = verify
        self._is_open = is_open
        # By the whole header, the time until which it need not be looked at again.
        self._known: dict[bytes, float] = {}

    def knows(self, header: bytes | None) -> bool:
        """Whether this header opens without a question."""
        return self._is_open or (header is not None and self._known.get(header, 0.0) > time.time())

    async def admit(self, header: bytes | None) -> None:
        """Raises `PlatformError` unless the header opens."""
        pairs = [] if header is None else [("authorization", header.decode("latin-1"))]
        caller = await self._verify(bearer(pairs))
        if header is not None:
            if len(self._known) >= _KNOWN_HEADERS:
                self._known.clear()
            self._known[header] = min(caller.expire_time, time.time() + _KNOWN_SECONDS)
