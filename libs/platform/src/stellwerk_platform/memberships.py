"""Which role a person has in a workspace, as `registry` says, remembered for some seconds.

The journal tells of every change within moments. An entry ages out all the same, so that a lost
bus cannot keep a door open, and nobody is refused because of an entry that is not new.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import grpc

from stellwerk_platform import names
from stellwerk_platform.errors import Unavailable
from stellwerk_platform.roles import WORKSPACE_ROLES
from stellwerk_protos.registry.v1 import members_pb2, members_pb2_grpc

if TYPE_CHECKING:
    from nats.aio.msg import Msg

    from stellwerk_platform.bus import Bus

log = logging.getLogger(__name__)
# Whose access has changed where: user and workspace, by resource name; "" for all.
Changed = Callable[[str, str], None]
_FRESH_SECONDS = 10.0
# So old may be what somebody is refused by.
_REFUSAL_SECONDS = 0.2
# While `registry` does not answer, nobody's role changes either: what was known goes on for so long.
_STALE_SECONDS = 300.0
_CACHE_SIZE = 50_000
_ASK_SECONDS = 5.0
_NAMES = {
    members_pb2.Role.Value(f"ROLE_{name}"): role
    for name, role in (
        ("OWNER", "Owner"),
        ("CONTRIBUTOR", "Contributor"),
        ("DATA_SCIENTIST", "DataScientist"),
        ("COMPUTE_OPERATOR", "ComputeOperator"),
        ("READER", "Reader"),
    )
}
assert set(_NAMES.values()) == set(WORKSPACE_ROLES)


def role_name(role: members_pb2.Role.ValueType) -> str:
    """`Owner` for ROLE_OWNER; "" for none."""
    return _NAMES.get(role, "")


class RoleSource(Protocol):
    """Who knows the members; raises `Unavailable`."""

    async def role(self, user: str, workspace: str) -> str:
        """The role of `users/{u}` in `workspaces/{w}`; "" for none, also when there is no such workspace."""


class Nobody:
    """The source of a server in which nothing lies in workspaces."""

    async def role(self, user: str, workspace: str) -> str:
        """None."""
        return ""


class Registry:
    """The source of every service but `registry`, which is asked."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = members_pb2_grpc.MemberServiceStub(channel)

    async def role(self, user: str, workspace: str) -> str:
        """As `registry` says now."""
        request = members_pb2.GetAccessRequest(user=user, workspace=workspace)
        try:
            return role_name((await self._stub.GetAccess(request, timeout=_ASK_SECONDS)).role)
        except grpc.aio.AioRpcError as error:
            log.warning("registry does not say who is a member: %s %s", error.code(), error.details())
            raise Unavailable(
                "REGISTRY_UNAVAILABLE",
                "The service that knows the members of workspaces does not answer.",
                "Try again; see `stellwerk status`.",
            ) from error


class Memberships:
    """The roles of people, from a source, remembered."""

    def __init__(self, source: RoleSource) -> None:
        self._source = source
        # Role, and when it was asked for, by the monotonic clock.
        self._known: OrderedDict[tuple[str, str], tuple[str, float]] = OrderedDict()
        self._changes = 0
        self._listeners: list[Changed] = []

    async def role(self, user: str, workspace: str) -> str:
        """The role of `users/{u}` in `workspaces/{w}`, "" for none; raises `Unavailable`."""
        role, asked = self._known.get((user, workspace), ("", -_STALE_SECONDS))
        age = time.monotonic() - asked
        if age < (_FRESH_SECONDS if role else _REFUSAL_SECONDS):
            return role
        try:
            return await self._ask(user, workspace)
        except Unavailable:
            if role and age < _STALE_SECONDS:
                return role
            raise

    async def role_for_refusal(self, user: str, workspace: str) -> str:
        """The same, for who would be refused: asked for right now, or a moment ago."""
        role, asked = self._known.get((user, workspace), ("", -_STALE_SECONDS))
        if time.monotonic() - asked < _REFUSAL_SECONDS:
            return role
        return await self._ask(user, workspace)

    async def _ask(self, user: str, workspace: str) -> str:
        changes, asked = self._changes, time.monotonic()
        role = await self._source.role(user, workspace)
        # An answer that a change may have overtaken is good for this once.
        if changes == self._changes:
            self._known[user, workspace] = role, asked
            self._known.move_to_end((user, workspace))
            if len(self._known) > _CACHE_SIZE:
                self._known.popitem(last=False)
        return role

    def listen(self, changed: Changed) -> None:
        """Calls `changed` after each change."""
        self._listeners.append(changed)

    def forget(self, user: str = "", workspace: str = "") -> None:
        """Has the next question reach the source; "" stands for all."""
        self._changes += 1
        if user and workspace:
            self._known.pop((user, workspace), None)
        else:
            for key in [k for k in self._known if user in ("", k[0]) and workspace in ("", k[1])]:
                del self._known[key]
        for changed in self._listeners:
            changed(user, workspace)

    async def follow(self, bus: Bus) -> None:
        """Forgets what the journal says has changed, and everything when the connection comes back."""

        async def member(message: Msg) -> None:
            # The name of the resource is in the event; a subject has no place for it.
            self.forget(workspace=_workspace_of(message))

        for resource in ("member", "workspace"):
            subject = bus.names.subject("journal", "*", "registry", resource, "*")
            await bus.client.subscribe(subject, cb=member)
        bus.on_reconnect(self.forget)


def _workspace_of(message: Msg) -> str:
    """`workspaces/demo` of `stellwerk.journal.demo.registry.member.added`."""
    return f"workspaces/{message.subject.split('.')[-4]}"


def user_of(member: str) -> str:
    """`users/alice` of `workspaces/demo/members/alice`."""
    return f"users/{names.id_of(member)}"
