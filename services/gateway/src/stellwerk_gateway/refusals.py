"""What the doors themselves refuse goes to the activity log; what a service refuses, that service reports."""

import functools
from typing import Any

from uvicorn.middleware.proxy_headers import _TrustedHosts

from stellwerk_gateway.asgi import Receive, Scope
from stellwerk_platform import activity, auth
from stellwerk_platform.errors import PermissionDenied, PlatformError, ResourceExhausted, Unauthenticated

_PATH_CHARACTERS = 200


class PayloadTooLarge(ResourceExhausted):
    """The body is larger than the gateway takes."""

    http_status = 413


def address_of(scope: Scope) -> str:
    """The client's address without its port."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def address_behind(proxies: str, peer: str, forwarded: str) -> str:
    """The client's address where uvicorn's own middleware does not run; it decides alike."""
    if not proxies or not forwarded or peer not in _trusted(proxies):
        return peer
    return _trusted(proxies).get_trusted_client_address(forwarded)[0] or peer


@functools.cache
def _trusted(proxies: str) -> _TrustedHosts:
    return _TrustedHosts(proxies)


def report(action: str, error: PlatformError, address: str, resource: str = "") -> None:
    """Reports an error when it is one that says no to the caller, and not that something is broken."""
    if isinstance(error, Unauthenticated | PermissionDenied | PayloadTooLarge):
        activity.denied(action, error, actor=_actor(), resource=resource, address=address)


def report_path(scope: Scope, error: PlatformError) -> None:
    """Reports a request for a path that there is not: somebody looks for doors."""
    activity.denied(_action(scope), error, address=address_of(scope))


class Counted:
    """Counts the bytes of a body while it is received, and reports one that is larger than may be."""

    def __init__(self, scope: Scope, receive: Receive, limit_bytes: int) -> None:
        self._scope = scope
        self._receive = receive
        self._limit_bytes = limit_bytes
        self._bytes = 0

    async def __call__(self) -> Any:
        """The next ASGI message."""
        message = await self._receive()
        before, self._bytes = self._bytes, self._bytes + len(message.get("body", b""))
        if before <= self._limit_bytes < self._bytes:
            error = PayloadTooLarge(
                "PAYLOAD_TOO_LARGE", f"The body has more than {self._limit_bytes:,} bytes."
            )
            report(_action(self._scope), error, address_of(self._scope))
        return message


def _action(scope: Scope) -> str:
    return f"{scope['method']} {scope['path'][:_PATH_CHARACTERS]}"


def _actor() -> str:
    try:
        return auth.current_caller().subject
    except LookupError:
        return ""
