"""Leases of interactive runs, kept outside the journal, and the judge who watches them.

A lease is a document that is written at each renewal. Whoever judges a lease writes
it in the transaction that changes the run, so that a renewal at the same moment comes
either before, and the lease holds, or after, and brings the run back.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from pymongo import ASCENDING, IndexModel

from stellwerk_platform import failpoints
from stellwerk_platform.documents import now
from stellwerk_platform.journal import Fact
from stellwerk_platform.mongo import Database, Transaction
from stellwerk_protos.runs.v1.runs_pb2 import Run
from stellwerk_runs.runs import interactive, states
from stellwerk_runs.runs.store import RunStore

log = logging.getLogger(__name__)
_EXPIRY = "expire_time"
_BATCH = 500
_SHORTEST_SLEEP_SECONDS = 0.02
_STALL_SHARE = 0.5


class LeaseStore:
    """One document an interactive run that has not ended."""

    def __init__(self, database: Database, runs: RunStore, seconds: float) -> None:
        self._database = database
        self._runs = runs
        self.seconds = seconds
        self._leases = database.raw["run_leases"]

    async def open(self) -> None:
        """Creates collection and index."""
        await self._database.ensure("run_leases", [IndexModel([(_EXPIRY, ASCENDING)])], [_EXPIRY])

    async def grant_in(self, tx: Transaction, run: Run) -> None:
        """The first lease of a new run."""
        await self._leases.insert_one(
            {"_id": run.name, _EXPIRY: self._until(self.seconds)}, session=tx.session
        )

    async def renew(self, name: str) -> tuple[Run, datetime]:
        """Extends the lease and brings the run back; raises `NotFound`, `FailedPrecondition`."""
        expiry = self._until(self.seconds)
        change = {"$set": {_EXPIRY: expiry}, "$unset": {"lost": ""}}
        renewed = await self._leases.update_one({"_id": name}, change)
        failpoints.hit("lease.renewed")
        run = await self._runs.runs.get(name)
        interactive.check(run)
        if states.is_terminal(run.state) or renewed.matched_count == 0:
            raise states.ended(run)
        moment = now()
        if interactive.revive(run, moment) is not None:
            run = await self._runs.runs.update(name, lambda found: interactive.revive(found, moment))
        return run, expiry

    async def finish(self, name: str, change: Callable[[Run], Fact | None]) -> Run:
        """Changes a run to its end, and forgets its lease."""

        async def work(tx: Transaction) -> Run:
            run = await self._runs.runs.update_in(tx, name, change)
            await self._leases.delete_one({"_id": name}, session=tx.session)
            return run

        return await self._database.commit(work)

    async def end_within(self, above: Run, cause: str) -> None:
        """Ends the interactive runs that the script of `above`, which has ended, left unfinished."""
        while left := await self._runs.interactive_of(above.name):
            for name in left:
                moment = now()
                await self.finish(
                    name,
                    lambda run, at=moment: interactive.left_behind(run, above, cause, at),  # type: ignore[misc]
                )
                log.info("%s ended with %s", name, above.name)

    async def expired(self) -> list[str]:
        """Runs whose lease is over, the longest ago first."""
        found = self._leases.find({_EXPIRY: {"$lte": datetime.now(UTC)}}, {"_id": 1})
        return [document["_id"] for document in await found.sort(_EXPIRY, ASCENDING).to_list(_BATCH)]

    async def next_expiry(self) -> datetime | None:
        """When the next lease ends."""
        document = await self._leases.find_one({}, {_EXPIRY: 1}, sort=[(_EXPIRY, ASCENDING)])
        return document[_EXPIRY] if document else None

    async def extend(self) -> None:
        """Gives everyone whose lease is over another one: nobody could renew for a while."""
        await self._leases.update_many(
            {_EXPIRY: {"$lte": datetime.now(UTC)}}, {"$set": {_EXPIRY: self._until(self.seconds)}}
        )

    async def judge(self, name: str) -> bool:
        """What becomes of a run whose lease is over; whether it was over, and not judged by another."""

        async def work(tx: Transaction) -> bool:
            where = {"_id": name, _EXPIRY: {"$lte": datetime.now(UTC)}}
            change = {"$set": {_EXPIRY: self._until(interactive.LOST_SECONDS), "lost": True}}
            lease = await self._leases.find_one_and_update(where, change, session=tx.session)
            if lease is None:
                return False
            lost, moment = bool(lease.get("lost")), now()

            above = await self._runs.script_of(name)

            def judge(run: Run) -> Fact | None:
                if above is not None and states.is_terminal(above.state):
                    return interactive.left_behind(run, above, "", moment)
                if lost:
                    return interactive.give_up(run, moment)
                return interactive.silence(run, self.seconds, moment)

            run = await self._runs.runs.update_in(tx, name, judge)
            if states.is_terminal(run.state):
                await self._leases.delete_one({"_id": name}, session=tx.session)
            failpoints.hit("lease.judged")
            return True

        return await self._database.commit(work)

    async def hurry_in(self, tx: Transaction, run: str) -> None:
        """A lost run that is asked to stop need not be waited for."""
        await self._leases.update_one(
            {"_id": run, "lost": True},
            {"$set": {_EXPIRY: datetime.now(UTC)}, "$unset": {"lost": ""}},
            session=tx.session,
        )

    @staticmethod
    def _until(seconds: float) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=seconds)


class LeaseJudge:
    """Sleeps until the first lease ends. Any number of replicas may judge: a lease is judged once."""

    def __init__(self, leases: LeaseStore) -> None:
        self._leases = leases

    async def run(self) -> None:
        """For ever; trouble with the store is waited out."""
        # Before this process there may have been none that could take a renewal.
        last, asleep = float("-inf"), 0.0
        while True:
            try:
                expiry = await self.round(
                    time.monotonic() - last > asleep + self._leases.seconds * _STALL_SHARE
                )
                last = time.monotonic()
            except Exception as error:
                log.warning("Leases cannot be judged now: %s", error)
                expiry = None
            asleep = self._until(expiry)
            await asyncio.sleep(asleep)

    async def round(self, stalled: bool) -> datetime | None:
        """Judges what is over, and returns when the next lease ends."""
        expired = await self._leases.expired()
        if stalled and expired:
            # This process or the store stood still, and nobody could renew a lease.
            await self._leases.extend()
        else:
            for run in expired:
                if await self._leases.judge(run):
                    log.warning("%s has not been heard of for its lease", run)
        return await self._leases.next_expiry()

    def _until(self, expiry: datetime | None) -> float:
        # A run that begins later cannot expire before one lease from now.
        longest = min(self._leases.seconds, 1.0)
        if expiry is None:
            return longest
        return min(max((expiry - datetime.now(UTC)).total_seconds(), _SHORTEST_SLEEP_SECONDS), longest)
