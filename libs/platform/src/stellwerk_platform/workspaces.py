"""Which workspaces take new things: those that exist and are not being deleted.

Every service asks the registry, remembers the answer for some seconds, and forgets it
when the journal says that the workspace has changed; a lost bus therefore delays what
a service knows, and never for longer than the answer is remembered.
"""

import time
from collections.abc import Awaitable, Callable

from nats.aio.msg import Msg

from stellwerk_platform.bus import Bus
from stellwerk_platform.mongo import Database, being_deleted
from stellwerk_protos.registry.v1.workspaces_pb2 import Workspace

_REMEMBER_SECONDS = 10.0
_MOST = 100_000
Find = Callable[[str], Awaitable[Workspace]]


class Workspaces:
    """The workspaces as one process knows them; `find` asks for one and raises `NotFound`."""

    def __init__(self, database: Database, find: Find) -> None:
        self._database = database
        self._find = find
        self._until: dict[str, float] = {}
        self._changes = 0
        self._on_change: list[Callable[[str], None]] = []

    async def follow(self, bus: Bus) -> None:
        """Forgets what the journal says has changed; the subscription ends with the connection."""
        await bus.client.subscribe(
            bus.names.subject("journal", "*", "registry", "workspace", "*"), cb=self._told
        )

    def on_change(self, call: Callable[[str], None]) -> None:
        """Calls this with the id of each workspace that is deleted, so that caches can be emptied."""
        self._on_change.append(call)

    async def check(self, name: str) -> None:
        """Raises `NotFound` for no such workspace, `FailedPrecondition` while it is being deleted."""
        if self._until.get(name, 0.0) > time.monotonic():
            return
        asked, changes = time.monotonic(), self._changes
        workspace = await self._find(name)
        if workspace.HasField("delete_time"):
            self.close(name)
            raise being_deleted(name)
        if changes != self._changes:
            return  # the answer may be older than what was told meanwhile: not remembered
        self._database.closed.discard(name)
        if len(self._until) >= _MOST:
            self._until.clear()
        self._until[name] = asked + _REMEMBER_SECONDS

    def close(self, name: str) -> None:
        """Takes nothing new for this workspace until `check` finds it open."""
        self._changes += 1
        self._until.pop(name, None)
        self._database.closed.add(name)
        for call in self._on_change:
            call(name)

    async def _told(self, message: Msg) -> None:
        _, workspace, _, _, verb = message.subject.rsplit(".", 4)
        name = f"workspaces/{workspace}"
        self._changes += 1
        self._until.pop(name, None)
        if verb == "deleting":
            self.close(name)
        elif verb == "created":
            # One of that name was deleted before.
            self._database.closed.discard(name)
