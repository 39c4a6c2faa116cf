"""The streams METRICS, LOGS and RECORDS: what has been acknowledged and is not in MongoDB yet."""

import asyncio
from datetime import timedelta

import nats.errors
import nats.js.errors

from stellwerk_platform import names
from stellwerk_platform.bus import Bus
from stellwerk_runs.changes import Changes
from stellwerk_runs.ingest.domain import LOGS, METRICS, RECORDS
from stellwerk_runs.logs.replicas import Owners

STREAMS = {METRICS: "METRICS", LOGS: "LOGS", RECORDS: "RECORDS"}
_SETTLE_SECONDS = 5.0
_REMEMBERED = 100_000
_LINGER = timedelta(seconds=30)


class Streams:
    """Work queues: a message is gone once the writer has stored it, so that they hold nothing else."""

    def __init__(self, bus: Bus, runs: Owners, changes: Changes) -> None:
        self._bus = bus
        self._runs = runs
        self._changes = changes
        self._complete: set[tuple[str, str]] = set()

    async def open(self, maximum_bytes: int) -> None:
        """Creates the streams. A full one refuses appends, and the sender tries again."""
        for kind, stream in STREAMS.items():
            await self._bus.ensure_stream(stream, kind, work=True, max_bytes=maximum_bytes)

    def subject(self, kind: str, run: str) -> str:
        """`stellwerk.metrics.<workspace>.<run>`"""
        return self._bus.names.subject(kind, names.workspace_of(run), names.id_of(run))

    async def is_complete(self, kind: str, run: str) -> bool:
        """Whether the run is over and all that it said is in MongoDB; raises `NotFound`.

        The end of a run is only reported after everything before it was acknowledged,
        so nothing more is to come then.
        """
        if (kind, run) in self._complete:
            return True
        if not await self._runs.is_over(run) or await self._holds(kind, run):
            return False
        if len(self._complete) >= _REMEMBERED:
            self._complete.clear()
        self._complete.add((kind, run))
        return True

    async def has_all(self, kind: str, run: str) -> bool:
        """The same for whoever follows, and would not come back for more.

        A run that others ended, because its process was not heard of, may still be heard of: what a
        process left is shipped by the next one, or by its agent.
        """
        return await self.is_complete(kind, run) and not await self._runs.was_lost(run, _LINGER)

    def forget(self, run: str) -> None:
        """Says that something came for a run, which may have seemed complete."""
        for kind in STREAMS:
            self._complete.discard((kind, run))

    def forget_all(self, workspace: str) -> None:
        """Says that all runs of `workspaces/demo` are gone."""
        self._complete = {key for key in self._complete if not key[1].startswith(f"{workspace}/")}

    async def purge(self, workspace: str) -> None:
        """Removes what waits to be stored for `workspaces/demo`."""
        for kind, stream in STREAMS.items():
            await self._bus.purge(stream, kind, names.id_of(workspace))

    async def settle(self, kind: str, run: str) -> None:
        """Raises `NotFound` for no such run; for one that is over, waits until its last words are stored.

        After some seconds it lets the reader have what there is.
        """
        if await self.is_complete(kind, run) or not await self._runs.is_over(run):
            return
        with self._changes.watch(run) as changed:
            try:
                async with asyncio.timeout(_SETTLE_SECONDS):
                    while not await self.is_complete(kind, run):
                        await changed.wait(0.2)
                        changed.clear()
            except TimeoutError:
                pass

    async def _holds(self, kind: str, run: str) -> bool:
        """Whether messages of the run wait to be stored; also while NATS does not say."""
        stream = self._bus.names.stream(STREAMS[kind])
        try:
            info = await self._bus.jetstream.stream_info(stream, subjects_filter=self.subject(kind, run))
        except (nats.errors.Error, nats.js.errors.Error, TimeoutError):
            return True
        return bool(info.state.subjects)
