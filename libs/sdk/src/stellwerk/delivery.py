"""Ships the write-ahead files and logs of a folder to their run, from a process that is no agent.

What an agent does for the runs of its node, a thread of the SDK does for interactive runs: a stream
that comes back after every break and sends again what was not acknowledged.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from stellwerk._async.core import AsyncCore
from stellwerk.shipping import MetricFolder, Position, Tail, TextFolder, append_request
from stellwerk_protos.runs.v1 import ingest_pb2, ingest_pb2_grpc

log = logging.getLogger(__name__)
_POLL_SECONDS = 0.1
_WINDOW = 16
_STALL_SECONDS = 30.0
_LONGEST_DELAY_SECONDS = 2.0
_REFUSALS = 6
_MAY_PASS = frozenset(
    {"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "CANCELLED", "INTERNAL", "UNKNOWN"}
)


@dataclass
class _Connection:
    """One stream: what it has sent and not seen acknowledged."""

    pending: deque[tuple[int, Tail[Any], Position]] = field(default_factory=deque)
    is_over: bool = False
    is_stalled: bool = False


class Delivery:
    """Follows the files of one run until told that nothing more is written."""

    def __init__(self, core: AsyncCore, run: str, folder: Path) -> None:
        self._core = core
        self._run = run
        self._folders = (MetricFolder(folder), TextFolder(folder))
        self._stub = ingest_pb2_grpc.IngestServiceStub(core.channel)
        self._changed = asyncio.Event()
        self._finishing = False
        self._batch = 0
        self._progress_time = 0.0

    def finish(self) -> None:
        """Nothing more is written: `run` returns once everything is acknowledged."""
        self._finishing = True
        self._changed.set()

    async def run(self) -> None:
        """Ships until finished; raises `StellwerkError` when the platform will never take it."""
        delay, refusals = _POLL_SECONDS, 0
        while True:
            acknowledged = self._progress_time
            try:
                if await self._stream():
                    return
                code = "UNAVAILABLE"
            except grpc.aio.AioRpcError as error:
                failure = self._core.translated(error)
                code = failure.code
                if code not in _MAY_PASS:
                    refusals += 1
                    if refusals >= _REFUSALS:
                        raise failure from error
            if self._progress_time > acknowledged:
                delay, refusals = _POLL_SECONDS, 0
            log.debug("%s: what was logged waits: %s", self._run, code)
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LONGEST_DELAY_SECONDS)

    async def _stream(self) -> bool:
        """One connection to its end; whether everything is acknowledged."""
        connection = _Connection()
        call = self._core.duplex(self._stub.Append, self._requests(connection))
        watch = asyncio.create_task(self._watch(connection, call))
        try:
            async for answer in call:
                self._acknowledge(connection, answer.batch)
        except asyncio.CancelledError:
            # The watch cancelled the call, or somebody this task.
            if not connection.is_stalled:
                raise
        finally:
            connection.is_over = True
            self._changed.set()
            call.cancel()
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch
            for tail in self._tails():
                tail.rewind()
                tail.save()
        return self._finishing and not any(tail.has_more() and tail.peek() for tail in self._tails())

    def _tails(self) -> list[Tail[Any]]:
        return [tail for folder in self._folders for tail in folder.tails()]

    async def _requests(self, connection: _Connection) -> AsyncIterator[ingest_pb2.AppendRequest]:
        while not connection.is_over:
            finishing, sent = self._finishing, False
            for tail in self._tails():
                while len(connection.pending) >= _WINDOW and not connection.is_over:
                    await self._wait()
                # In a thread: a large file must not hold up the leases.
                batch = await asyncio.to_thread(tail.peek) if tail.has_more() else None
                if connection.is_over:
                    return
                if batch is not None:
                    sent = True
                    tail.advance(batch)
                    self._batch += 1
                    connection.pending.append((self._batch, tail, batch.end))
                    yield append_request(self._run, self._batch, batch.payload)
            if sent:
                continue
            if finishing and not connection.pending:
                return
            await self._wait()

    async def _wait(self) -> None:
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_POLL_SECONDS):
                await self._changed.wait()

    def _acknowledge(self, connection: _Connection, batch: int) -> None:
        while connection.pending and connection.pending[0][0] <= batch:
            _, tail, end = connection.pending.popleft()
            tail.acknowledge(end)
            tail.save()
        self._progress_time = asyncio.get_running_loop().time()
        self._changed.set()

    async def _watch(self, connection: _Connection, call: Any) -> None:
        """Cancels a stream that takes and never acknowledges."""
        clock = asyncio.get_running_loop().time
        waiting_since = clock()
        while clock() - max(waiting_since, self._progress_time) < _STALL_SECONDS:
            await asyncio.sleep(1)
            if not connection.pending:
                waiting_since = clock()
        connection.is_stalled = True
        call.cancel()


async def deliver(core: AsyncCore, run: str, folder: Path) -> None:
    """Ships all that lies in a folder to which nobody writes any more; raises `StellwerkError`."""
    delivery = Delivery(core, run, folder)
    delivery.finish()
    await delivery.run()
