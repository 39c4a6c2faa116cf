"""Finishes removals: of runs that are marked, then of snapshots and blobs that nothing uses any more.

What was used a moment ago may be about to be used again by somebody who was just told
that it is there; so it stays for the grace time and is looked at again after that.
"""

import asyncio
import logging
from datetime import UTC, datetime, timedelta

from stellwerk_platform import failpoints, names
from stellwerk_platform.errors import NotFound, as_platform_error
from stellwerk_platform.journal import Fact
from stellwerk_platform.mongo import Database, Transaction, stamp
from stellwerk_protos.runs.v1.snapshots_pb2 import Snapshot
from stellwerk_runs.retention.holds import Holds
from stellwerk_runs.retention.references import Leaving, References
from stellwerk_runs.retention.store import RemovalStore
from stellwerk_runs.snapshots.store import SnapshotStore
from stellwerk_runs.upstream import Registry

log = logging.getLogger(__name__)
_SWEEP_SECONDS = 30.0
_BLOBS_PER_PASS = 100_000
_SOONEST = timedelta(seconds=1)


class Remover:
    """The sweep. Several replicas may do the same at once; each step can be repeated."""

    def __init__(
        self,
        database: Database,
        removals: RemovalStore,
        references: References,
        snapshots: SnapshotStore,
        holds: Holds,
        registry: Registry,
        grace_seconds: float,
    ) -> None:
        self._database = database
        self._removals = removals
        self._references = references
        self._snapshots = snapshots
        self._holds = holds
        self._registry = registry
        self._grace = max(timedelta(seconds=grace_seconds), _SOONEST)
        self._awake = asyncio.Event()
        self._awake.set()

    def wake(self) -> None:
        """Says that there is something to do."""
        self._awake.set()

    async def run(self) -> None:
        """Sweeps for ever: when woken, and from time to time for what has become due."""
        while True:
            try:
                async with asyncio.timeout(min(_SWEEP_SECONDS, self._grace.total_seconds())):
                    await self._awake.wait()
            except TimeoutError:
                pass
            self._awake.clear()
            try:
                await self.sweep()
            except Exception as error:
                expected = as_platform_error(error) is not None
                log.warning("Removals are tried again: %s", error, exc_info=not expected)
                await asyncio.sleep(1.0)

    async def delete_marked(self) -> None:
        """Deletes the documents of the runs that are marked: nobody else has to be asked."""
        while runs := await self._removals.unfinished():
            for run in runs:
                await self._removals.delete(run)

    async def sweep(self) -> None:
        """All that is due."""
        await self.delete_marked()
        for snapshot in await self._removals.due_snapshots():
            await self._remove_snapshot(snapshot)
        for workspace, digests in (await self._removals.due_blobs(_BLOBS_PER_PASS)).items():
            await self._release(workspace, digests)

    async def _remove_snapshot(self, name: str) -> None:
        moment = datetime.now(UTC)
        if await self._removals.uses(name) or await self._holds.of([name]):
            # Whoever uses it last gives it up; a deployment does not, so it is looked at again.
            is_held = bool(await self._holds.of([name]))
            await self._removals.settle_snapshot(name, moment + timedelta(days=1) if is_held else None)
            return
        try:
            snapshot = await self._snapshots.get(name)
        except NotFound:
            await self._removals.settle_snapshot(name, None)
            return
        blobs = await self._references.blobs_of_snapshot(snapshot)
        await self._removals.give_up_blobs(names.parent_of(name), list(blobs))

        async def work(tx: Transaction) -> bool:
            if not await self._snapshots.delete_unused_in(tx, name, moment - self._grace):
                return False
            gone = Snapshot()
            gone.CopyFrom(snapshot)
            gone.ClearField("files")
            stamp(gone)
            tx.record(gone, Fact("removed", "UNUSED", "No run uses it any more."))
            return True

        is_gone = await self._database.commit(work)
        failpoints.hit("removal.snapshot")
        await self._removals.settle_snapshot(name, None if is_gone else moment + self._grace)

    async def _release(self, workspace: str, digests: list[str]) -> None:
        free = await self._references.unreferenced(workspace, digests, Leaving())
        answer = await self._registry.release_blobs(workspace, sorted(free), validate_only=False)
        failpoints.hit("removal.released")
        again = datetime.now(UTC) + self._grace
        await self._removals.settle_blobs(workspace, digests, dict.fromkeys(answer.later, again))
