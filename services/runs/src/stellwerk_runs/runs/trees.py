"""Cancelling a run with all its descendants.

The request marks its run and notes itself in one transaction. A sweep then walks down
the tree, parents before children: a run that is marked, finalizing or over gets no new
children (`states.PARENTS`), so that whatever is below it is known. Each run is a
transition of its own, and the note is removed last; a sweep that is killed half-way is
taken up again by any replica.
"""

import asyncio
import logging
from datetime import UTC, datetime

from pymongo import ASCENDING

from stellwerk_platform import failpoints
from stellwerk_platform.documents import now
from stellwerk_platform.errors import FailedPrecondition, NotFound
from stellwerk_platform.journal import Fact
from stellwerk_platform.mongo import Database, Transaction
from stellwerk_protos.runs.v1.runs_pb2 import Run, RunState
from stellwerk_runs.runs import states
from stellwerk_runs.runs.leases import LeaseStore
from stellwerk_runs.runs.store import RunStore

log = logging.getLogger(__name__)
_SWEEP_SECONDS = 2.0
_BATCH = 1_000
_LIVE = [RunState.Name(state) for state in RunState.values() if state not in states.TERMINAL]


class Trees:
    """The notes of cancels under way, and the sweep that finishes them."""

    def __init__(self, database: Database, runs: RunStore, leases: LeaseStore) -> None:
        self._database = database
        self._runs = runs
        self._leases = leases
        self._cancels = database.raw["run_cancels"]
        self._awake = asyncio.Event()
        self._awake.set()

    async def open(self) -> None:
        """Creates the collection."""
        await self._database.ensure("run_cancels", required=["actor", "message", "time"])

    async def cancel(self, name: str, actor: str, message: str) -> Run:
        """Marks the run; its descendants follow at once, also those of a run that has ended itself.

        Raises `FailedPrecondition` for a run that has ended and never had children.
        """
        descends = await self._runs.runs.raw.find_one({"parent_run": name}, {"_id": 1}) is not None

        async def work(tx: Transaction) -> Run:
            run = await self._mark_in(tx, name, actor, message, alone=not descends)
            note = {"actor": actor, "message": message, "time": datetime.now(UTC)}
            await self._cancels.update_one(
                {"_id": name}, {"$setOnInsert": note}, upsert=True, session=tx.session
            )
            return run

        run = await self._database.commit(work)
        self._awake.set()
        return run

    async def _mark_in(self, tx: Transaction, name: str, actor: str, message: str, alone: bool) -> Run:
        moment = now()

        def change(run: Run) -> Fact | None:
            try:
                return states.request_cancel(run, actor, message, moment)
            except FailedPrecondition:
                if alone:
                    raise
                return None

        run = await self._runs.runs.update_in(tx, name, change)
        await self._leases.hurry_in(tx, name)
        return run

    async def run(self) -> None:
        """Sweeps for ever: when woken, and every two seconds for what others left behind."""
        while True:
            try:
                async with asyncio.timeout(_SWEEP_SECONDS):
                    await self._awake.wait()
            except TimeoutError:
                pass
            self._awake.clear()
            try:
                async for note in self._cancels.find().sort("time", ASCENDING):
                    await self._sweep(note["_id"], note["actor"], note["message"])
            except Exception as error:
                log.warning("Cancels of trees wait: %s", error)

    async def _sweep(self, root: str, actor: str, message: str) -> None:
        level = [root]
        while level:
            below: list[str] = []
            for parent in level:
                below += await self._children(parent, actor, message)
            level = below
        await self._cancels.delete_one({"_id": root})

    async def _children(self, parent: str, actor: str, message: str) -> list[str]:
        """Marks the children of a run, and returns all of them: an ended child may have live ones."""
        names: list[str] = []
        found = self._runs.runs.raw.find({"parent_run": parent}, {"_id": 1, "state": 1}).batch_size(_BATCH)
        live = []
        async for document in found:
            names.append(document["_id"])
            if document["state"] in _LIVE:
                live.append(document["_id"])
        for name in live:
            await self._mark(name, actor, message or f"{parent} was asked to stop")
            failpoints.hit("tree.marked")
        return names

    async def _mark(self, name: str, actor: str, message: str) -> None:
        try:
            await self._database.commit(lambda tx: self._mark_in(tx, name, actor, message, alone=False))
        except NotFound:
            # It was removed in the meantime.
            log.info("%s is gone", name)
