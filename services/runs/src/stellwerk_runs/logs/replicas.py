"""Replicas of deployments, as far as their logs need them: which there are, and which have ended.

Told by the journal. `Owners` answers for runs and replicas alike, for all that takes or reads log text.
"""

from datetime import UTC, datetime, timedelta

from pymongo import ASCENDING, IndexModel

from stellwerk_platform import names
from stellwerk_platform.bus import Bus
from stellwerk_platform.errors import NotFound
from stellwerk_platform.journal import Event
from stellwerk_platform.mongo import Database
from stellwerk_runs.changes import Changes
from stellwerk_runs.runs.store import RunStore

DURABLE = "runs-replicas"
TYPES = [f"inference.replica.{verb}" for verb in ("created", "failed", "deleted")]
RUN = "workspaces/*/runs/*"
REPLICA = "workspaces/*/endpoints/*/deployments/*/replicas/*"
# So long after the end of a replica, and after it was written, its log can be read.
KEPT = timedelta(days=30)


def is_replica(name: str) -> bool:
    """Whether a log is that of a replica."""
    return "/replicas/" in name


def check_owner(name: str) -> None:
    """Raises `InvalidArgument` for what has no log."""
    names.parse(REPLICA if is_replica(name) else RUN, name)


class Replicas:
    """The collection `log_replicas`, and its consumer."""

    def __init__(self, database: Database, bus: Bus, changes: Changes) -> None:
        self._database = database
        self._bus = bus
        self._changes = changes
        self._replicas = database.raw["log_replicas"]

    async def open(self) -> None:
        """Creates the collection."""
        expiry = IndexModel([("end_time", ASCENDING)], expireAfterSeconds=int(KEPT.total_seconds()))
        await self._database.ensure("log_replicas", [expiry])

    async def run(self) -> None:
        """Consumes for ever."""
        await self._bus.consume(DURABLE, TYPES, self.handle)

    async def handle(self, event: Event) -> None:
        """Notes a replica, or its end."""
        change: dict[str, object] = {"$setOnInsert": {"_id": event.resource}}
        if event.verb != "created":
            change = {"$set": {"end_time": datetime.now(UTC)}}
        await self._replicas.update_one({"_id": event.resource}, change, upsert=True)
        if event.verb != "created":
            await self._changes.announce(event.resource)

    async def is_over(self, name: str) -> bool:
        """Whether it has ended; raises `NotFound`."""
        document = await self._replicas.find_one({"_id": name})
        if document is None:
            raise NotFound(
                "REPLICA_NOT_FOUND",
                f"There is no log of a replica {name}.",
                f"Logs are kept for {KEPT.days} days after the end of a replica.",
            )
        return "end_time" in document


class Owners:
    """Whose logs there are: runs and replicas."""

    def __init__(self, runs: RunStore, replicas: Replicas) -> None:
        self._runs = runs
        self._replicas = replicas

    async def check(self, name: str) -> int:
        """When a run was made, in ms since 1970; raises `NotFound`.

        0 for a replica: its name is never given again, and only its own token appends for it.
        """
        return 0 if is_replica(name) else await self._runs.check(name)

    async def is_over(self, name: str) -> bool:
        """Whether it says nothing more; raises `NotFound`."""
        return await (self._replicas if is_replica(name) else self._runs).is_over(name)

    async def was_lost(self, name: str, lately: timedelta) -> bool:
        """Whether others said lately that it has ended, so that more may come."""
        return not is_replica(name) and await self._runs.was_lost(name, lately)
