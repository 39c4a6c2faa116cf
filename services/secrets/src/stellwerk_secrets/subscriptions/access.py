"""Which workspaces a person may read now: asked of `registry`, and of the people here."""

import time
from collections.abc import Awaitable, Callable

import grpc

from stellwerk_platform.errors import Unavailable
from stellwerk_protos.registry.v1 import members_pb2, members_pb2_grpc

_ASK_SECONDS = 2.0
# What the journal may have failed to tell is asked for anew after this time.
_FRESH_SECONDS = 30.0

Active = Callable[[str], Awaitable[bool]]


class Access:
    """The workspaces of people, remembered until somebody says that they have changed."""

    def __init__(self, registry: grpc.aio.Channel, active: Active) -> None:
        self._stub = members_pb2_grpc.MemberServiceStub(registry)
        self._active = active
        self._known: dict[str, tuple[frozenset[str], float]] = {}

    async def of(self, user: str) -> frozenset[str]:
        """As it is known; raises `Unavailable` when it is not and `registry` does not answer."""
        known, until = self._known.get(user, (frozenset(), 0.0))
        return known if time.monotonic() < until else await self.now(user)

    async def now(self, user: str) -> frozenset[str]:
        """The same, asked for now."""
        asked = time.monotonic()
        self._known.pop(user, None)
        found = await self._ask(user) if await self._active(user) else frozenset()
        self._known[user] = found, asked + _FRESH_SECONDS
        return found

    def forget(self, user: str = "") -> None:
        """Has the next question asked anew; "" stands for everybody."""
        if user:
            self._known.pop(user, None)
        else:
            self._known.clear()

    async def _ask(self, user: str) -> frozenset[str]:
        try:
            answer = await self._stub.ListAccess(
                members_pb2.ListAccessRequest(user=user), timeout=_ASK_SECONDS
            )
        except grpc.aio.AioRpcError as error:
            raise Unavailable(
                "REGISTRY_UNAVAILABLE",
                "The service that knows the members of workspaces does not answer.",
                "Try again; see `stellwerk status`.",
            ) from error
        return frozenset(item.workspace for item in answer.access if item.role)
