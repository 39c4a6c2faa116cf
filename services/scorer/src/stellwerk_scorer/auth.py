"""Who may score: the check that HTTP and gRPC share."""

from collections.abc import Awaitable, Callable

from stellwerk_platform.auth import Caller, TokenVerifier, authorise

# Raises `Unauthenticated` or `PermissionDenied` for a token, `Unavailable` if it cannot be checked.
Verify = Callable[[str], Awaitable[Caller]]
_PERMISSION = "endpoint.invoke"


def invoker(verifier: TokenVerifier, endpoint: str) -> Verify:
    """Accepts tokens whose role may invoke the endpoint that this replica belongs to."""

    async def verify(token: str) -> Caller:
        caller = await verifier.verify(token)
        authorise(caller, _PERMISSION, endpoint)
        return caller

    return verify
