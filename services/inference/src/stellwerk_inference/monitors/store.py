"""Monitors and their checks in MongoDB.

A monitor and its checks change in transactions that hold the monitor's lock. Who works on a check
has a lease on its document, beside the message. A deleted monitor stays as a tombstone, so that
one of the same name goes on counting revisions and checks.
"""

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from pymongo import ASCENDING, DESCENDING, IndexModel, ReturnDocument
from pymongo.errors import DuplicateKeyError

from stellwerk_inference.monitors import domain
from stellwerk_platform import names
from stellwerk_platform.auth import current_actor
from stellwerk_platform.documents import Document, from_document
from stellwerk_platform.errors import AlreadyExists, FailedPrecondition, ResourceExhausted
from stellwerk_platform.journal import Fact
from stellwerk_platform.mongo import Collection, Database, Session, Transaction, missing, request_key
from stellwerk_protos.inference.v1 import monitors_pb2 as pb

T = TypeVar("T")
LEASE_SECONDS = 30.0
_RUNNING = pb.MonitorCheckState.Name(domain.RUNNING)
_MOST_DUE = 100


class MonitorStore:
    """The two collections."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.monitors = Collection(
            database,
            "monitors",
            pb.Monitor,
            indexes=[
                IndexModel([("parent", ASCENDING), ("_id", ASCENDING)]),
                IndexModel([("next_check_time", ASCENDING)], sparse=True),
            ],
            extra=lambda monitor: {"parent": names.parent_of(monitor.name)},
        )
        self.checks = Collection(
            database,
            "monitor_checks",
            pb.MonitorCheck,
            indexes=[
                IndexModel([("parent", ASCENDING), ("number", DESCENDING)]),
                IndexModel([("state", ASCENDING), ("create_time", ASCENDING)]),
            ],
            extra=lambda check: {
                "parent": names.parent_of(check.name),
                "number": int(names.id_of(check.name)),
            },
        )

    async def open(self) -> None:
        """Creates collections and indexes."""
        await self.monitors.open()
        await self.checks.open()

    async def change(self, monitor: str, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """Runs `work` while nobody else changes the monitor or its checks; raises `NotFound`."""

        async def locked(tx: Transaction) -> T:
            where = {"_id": monitor, "deleted": {"$exists": False}}
            result = await self.monitors.raw.update_one(where, {"$inc": {"lock": 1}}, session=tx.session)
            if result.matched_count == 0:
                raise missing(pb.Monitor, monitor)
            return await work(tx)

        return await self._database.commit(locked)

    async def get(self, name: str) -> pb.Monitor:
        """Raises `NotFound`, also for one that was deleted."""
        found = await self.monitors.raw.find_one({"_id": name, "deleted": {"$exists": False}})
        if found is None:
            raise missing(pb.Monitor, name)
        return from_document(pb.Monitor, found)

    async def page(self, parent: str, endpoint: str, size: int, token: str) -> tuple[list[pb.Monitor], str]:
        """One page, by name, and the token of the next one."""
        where: Document = {"parent": parent, "deleted": {"$exists": False}}
        if endpoint:
            where["endpoint"] = endpoint
        return await self.monitors.page(where, size, token)

    async def create(self, monitor: pb.Monitor, request_id: str) -> pb.Monitor:
        """Stores a new monitor; the first answer for a repeated request.

        Raises `AlreadyExists`, and `ResourceExhausted` when the workspace has as many as it may.
        """

        async def work(tx: Transaction) -> pb.Monitor:
            created = await put(tx)
            # Afterwards, so that a repeated request or a taken name is told as such.
            await self.check_room(names.parent_of(monitor.name), more=0, session=tx.session)
            return created

        async def put(tx: Transaction) -> pb.Monitor:
            tombstone = {"_id": monitor.name, "deleted": True}
            mark: Document = {"$unset": {"deleted": "", "request_id": ""}}
            if request_id:
                mark = {"$unset": {"deleted": ""}, "$set": {"request_id": request_key(request_id)}}
            found = await self.monitors.raw.update_one(tombstone, mark, session=tx.session)
            if not found.matched_count:
                return await self.monitors.create_in(tx, monitor, Fact("created", "REQUESTED"), request_id)
            self._database.check_open(monitor.name)
            return await self.monitors.update_in(tx, monitor.name, lambda old: _revive(old, monitor))

        try:
            return await self._database.commit(work)
        except DuplicateKeyError:
            return await self.monitors.existing(monitor, request_id)

    async def check_room(self, workspace: str, *, more: int = 1, session: Session | None = None) -> None:
        """Raises `ResourceExhausted` when the workspace cannot have so many more."""
        where = {"parent": workspace, "deleted": {"$exists": False}}
        count = await self.monitors.raw.count_documents(where, session=session)
        if count + more > domain.MAX_MONITORS:
            raise ResourceExhausted(
                "TOO_MANY_MONITORS",
                f"{workspace} has {domain.MAX_MONITORS} monitors.",
                "Delete some (stellwerk monitor list; stellwerk monitor delete NAME), or watch more columns "
                "with one.",
            )

    async def update(self, name: str, change: Callable[[pb.Monitor], Fact | None], etag: str) -> pb.Monitor:
        """Applies a rule; raises `NotFound`, `Aborted`."""
        return await self.change(name, lambda tx: self.monitors.update_in(tx, name, change, etag))

    async def delete(self, name: str) -> pb.Monitor:
        """The monitor is gone with its checks; raises `NotFound`."""

        async def work(tx: Transaction) -> pb.Monitor:
            deleted = await self.monitors.update_in(tx, name, domain.delete)
            mark = {"$set": {"deleted": True}}
            await self.monitors.raw.update_one({"_id": name}, mark, session=tx.session)
            await self.checks.raw.delete_many({"parent": name}, session=tx.session)
            return deleted

        return await self.change(name, work)

    async def due(self, now: datetime) -> list[str]:
        """Names of monitors whose schedule wants a check, the longest due first.

        Without those of which a check goes on: they could fill the list for ever.
        """
        busy = await self.checks.raw.distinct("parent", {"state": _RUNNING})
        found = self.monitors.raw.find({"next_check_time": {"$lte": now}, "_id": {"$nin": busy}}, {"_id": 1})
        return [d["_id"] async for d in found.sort("next_check_time", ASCENDING).limit(_MOST_DUE)]

    async def next_due(self, now: datetime) -> datetime | None:
        """When the next schedule is due after now."""
        found = await self.monitors.raw.find_one(
            {"next_check_time": {"$gt": now}}, {"next_check_time": 1}, sort=[("next_check_time", ASCENDING)]
        )
        return None if found is None else found["next_check_time"]

    async def begin_due(self, name: str) -> pb.MonitorCheck | None:
        """Begins the check that the schedule wants, once; None while one goes on or nothing is due."""

        async def work(tx: Transaction) -> pb.MonitorCheck | None:
            monitor, now = await self.monitors.get(name, tx.session), datetime.now(UTC)
            if not domain.is_due(monitor, now) or await self._waiting(tx, name):
                return None
            due = monitor.next_check_time.ToJsonString()
            return await self._begin(tx, name, (now, now), ("SCHEDULED", f"Was due at {due}."))

        return await self.change(name, work)

    async def begin(self, name: str, end: datetime | None, request_id: str) -> pb.MonitorCheck:
        """Begins a check that somebody asks for; the first answer for a repeated request.

        Raises `NotFound`, and `FailedPrecondition` when many wait.
        """

        async def work(tx: Transaction) -> pb.MonitorCheck:
            now = datetime.now(UTC)
            if await self._waiting(tx, name) >= domain.MAX_WAITING:
                raise FailedPrecondition(
                    "TOO_MANY_CHECKS", f"{domain.MAX_WAITING} checks wait already.", "Wait for one to end."
                )
            return await self._begin(tx, name, (now, end or now), ("REQUESTED", ""), request_id)

        if (earlier := await self.checks.created_by(request_id)) is not None:
            return earlier
        try:
            return await self.change(name, work)
        except DuplicateKeyError:
            earlier = await self.checks.created_by(request_id)
            if earlier is None:
                raise AlreadyExists("ALREADY_EXISTS", "The check exists already.", "Ask again.") from None
            return earlier

    async def _waiting(self, tx: Transaction, name: str) -> int:
        where = {"parent": name, "state": _RUNNING}
        return await self.checks.raw.count_documents(where, session=tx.session)

    async def _begin(
        self,
        tx: Transaction,
        name: str,
        times: tuple[datetime, datetime],
        reason: tuple[str, str],
        request_id: str = "",
    ) -> pb.MonitorCheck:
        """`times` are now and the end of the window, `reason` is why, by code and text."""
        now, end = times
        # Beside the message: it goes on counting when the monitor is deleted and made anew.
        counted = await self.monitors.raw.find_one_and_update(
            {"_id": name},
            {"$inc": {"check_number": 1}},
            return_document=ReturnDocument.AFTER,
            session=tx.session,
        )
        number = int(counted["check_number"])
        monitor = await self.monitors.update_in(
            tx, name, lambda current: domain.begin(current, number, reason, now)
        )
        creator = current_actor(self._database.service)
        check = domain.new_check(monitor, number, creator, end)
        created = Fact("created", *reason, cause=tx.last_event())
        check = await self.checks.create_in(tx, check, created, request_id)
        mark = {"$set": {"created_event": tx.last_event()}}
        await self.checks.raw.update_one({"_id": check.name}, mark, session=tx.session)
        return check

    async def check(self, name: str) -> pb.MonitorCheck:
        """One check, also by `latest`; raises `NotFound`."""
        monitor, _, number = name.rpartition("/checks/")
        if number != "latest":
            return await self.checks.get(name)
        found = await self.checks.raw.find_one({"parent": monitor}, sort=[("number", DESCENDING)])
        if found is None:
            raise missing(pb.MonitorCheck, name)
        return from_document(pb.MonitorCheck, found)

    async def checks_page(self, parent: str, size: int, token: str) -> tuple[list[pb.MonitorCheck], str]:
        """One page, newest first, and the token of the next one."""
        return await self.checks.page({"parent": parent}, size, token, key="number", descending=True)

    async def waiting(self) -> dict[str, datetime]:
        """By monitor, when the oldest check was begun that nobody works on."""
        oldest = {"_id": "$parent", "oldest": {"$min": "$create_time"}}
        found = self.checks.raw.aggregate([{"$match": _free(datetime.now(UTC))}, {"$group": oldest}])
        return {document["_id"]: document["oldest"] async for document in found}

    async def claim(self, owner: str, monitors: Sequence[str]) -> tuple[pb.MonitorCheck, int] | None:
        """Their oldest check that nobody works on, for `owner` alone, and how often it was taken up."""
        now = datetime.now(UTC)
        found = await self.checks.raw.find_one_and_update(
            {**_free(now), "parent": {"$in": monitors}},
            {"$set": {"lease_owner": owner, "lease_until": _until(now)}, "$inc": {"tries": 1}},
            sort=[("create_time", ASCENDING)],
            return_document=ReturnDocument.AFTER,
        )
        return None if found is None else (from_document(pb.MonitorCheck, found), int(found["tries"]))

    async def renew(self, check: str, owner: str) -> bool:
        """Whether the check is still `owner`'s, and for another while."""
        where = {"_id": check, "lease_owner": owner, "state": _RUNNING}
        mark = {"$set": {"lease_until": _until(datetime.now(UTC))}}
        return bool((await self.checks.raw.update_one(where, mark)).matched_count)

    async def release(self, check: str, owner: str) -> None:
        """Gives the check back at once, as if it had not been taken up."""
        mark = {"$unset": {"lease_owner": "", "lease_until": ""}, "$inc": {"tries": -1}}
        await self.checks.raw.update_one({"_id": check, "lease_owner": owner}, mark)

    async def finish(
        self, check: pb.MonitorCheck, owner: str, end: Callable[[pb.MonitorCheck], Fact]
    ) -> bool:
        """Ends a check, and the monitor follows; False when it is not `owner`'s any more.

        Raises `NotFound` for a monitor that is gone.
        """
        monitor = names.parent_of(check.name)

        async def work(tx: Transaction) -> bool:
            where = {"_id": check.name, "lease_owner": owner, "state": _RUNNING}
            mine = await self.checks.raw.find_one(where, {"created_event": 1}, session=tx.session)
            if mine is None:
                return False
            cause = mine.get("created_event", "")
            ended = await self.checks.update_in(tx, check.name, lambda c: _caused(end(c), cause))
            cause = tx.last_event()
            current = await self.monitors.get(monitor, tx.session)
            last = await self.checks.find(current.last_check, tx.session) if current.last_check else None
            await self.monitors.update_in(tx, monitor, lambda m: _followed(m, ended, last, cause))
            await self._forget_old(tx, monitor, ended.name)
            return True

        return await self.change(monitor, work)

    async def _forget_old(self, tx: Transaction, monitor: str, newest: str) -> None:
        """Only so many checks are kept, and the one whose result the monitor shows."""
        shown = (await self.monitors.get(monitor, tx.session)).last_check
        oldest = int(names.id_of(newest)) - domain.KEPT_CHECKS
        where = {"parent": monitor, "number": {"$lte": oldest}, "_id": {"$ne": shown}}
        await self.checks.raw.delete_many(where, session=tx.session)


def _free(now: datetime) -> Document:
    """Of checks that nobody works on."""
    free = [{"lease_until": {"$exists": False}}, {"lease_until": {"$lt": now}}]
    return {"state": _RUNNING, "$or": free}


def _until(now: datetime) -> datetime:
    return now + timedelta(seconds=LEASE_SECONDS)


def _revive(tombstone: pb.Monitor, monitor: pb.Monitor) -> Fact:
    revision = tombstone.revision
    tombstone.CopyFrom(monitor)
    tombstone.revision = revision
    return Fact("created", "REQUESTED")


def _caused(fact: Fact, cause: str) -> Fact:
    return Fact(fact.verb, fact.code, fact.message, cause=cause)


def _followed(
    monitor: pb.Monitor, check: pb.MonitorCheck, last: pb.MonitorCheck | None, cause: str
) -> Fact | None:
    fact = domain.follow(monitor, check, last)
    return None if fact is None else _caused(fact, cause)
