"""Ships a run's logs, metrics and records: a stream to `runs` that comes back and forgets nothing."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import grpc

from stellwerk.shipping import MetricFolder, MetricTail, Position, append_request
from stellwerk_agent.calls import FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS, may_pass
from stellwerk_agent.failure import StepFailed
from stellwerk_agent.logs import LogFile, LogFolder
from stellwerk_platform.errors import PlatformError, Unavailable, from_rpc
from stellwerk_protos.runs.v1 import ingest_pb2, ingest_pb2_grpc

log = logging.getLogger(__name__)
_POLL_SECONDS = 0.1
_WINDOW = 32
# A batch of this size is followed by the next one at once.
_FULL_BYTES = 128 * 1024
_SAVE_SECONDS = 0.5
_STALL_SECONDS = 30.0
_REFUSALS = 6
_Tail: TypeAlias = LogFile | MetricTail


class Shipper:
    """Follows the files of one run until told that nothing more is written."""

    def __init__(
        self,
        stub: "ingest_pb2_grpc.IngestServiceAsyncStub",
        run: str,
        logs: LogFolder,
        metrics: MetricFolder,
    ) -> None:
        self._stub = stub
        self._run = run
        self._logs = logs
        self._metrics = metrics
        self._pending: deque[tuple[int, _Tail, Position]] = deque()
        self._changed = asyncio.Event()
        self._finished = asyncio.Event()
        self._batch = 0
        self._saved_time = self._progress_time = 0.0
        self._refusals = self._unread = 0

    def finish(self) -> None:
        """Nothing more is written: `run` returns once everything is acknowledged."""
        self._logs.finish()
        self._finished.set()
        self._changed.set()

    async def run(self) -> None:
        """Ships until finished; raises `StepFailed` when `runs` will never take it."""
        delay = FIRST_DELAY_SECONDS
        while True:
            batch = self._batch
            try:
                await self._stream()
                return
            except grpc.aio.AioRpcError as error:
                failure = from_rpc(error)
            except PlatformError as error:
                failure = error
            except OSError as error:
                failure = self._unreadable(error)
            finally:
                self._reset()
            self._judge(failure)
            delay = FIRST_DELAY_SECONDS if self._batch > batch else min(delay * 2, LONGEST_DELAY_SECONDS)
            await asyncio.sleep(delay)

    def _unreadable(self, error: OSError) -> PlatformError:
        """A local file that cannot be read: tried again some times, for it may be out of descriptors only."""
        self._unread += 1
        if self._unread >= _REFUSALS:
            raise StepFailed(
                "OUTPUT_COLLECTION_FAILED",
                f"The logs and metrics cannot be read on the node: {error}.",
                "See the agent's log, and whether the command changed these files.",
            )
        return Unavailable("FILE_UNREADABLE", f"{error}.")

    def _judge(self, failure: PlatformError) -> None:
        log.warning("%s: logs and metrics wait: %s", self._run, failure)
        if may_pass(failure):
            return
        self._refusals += 1
        if self._refusals >= _REFUSALS:
            raise StepFailed(
                "OUTPUT_COLLECTION_FAILED",
                f"The logs and metrics are refused: {failure.reason}: {failure.message}",
                failure.cure or "See the agent's log; the files are still on the node.",
            )

    def _reset(self) -> None:
        self._pending.clear()
        for tail in self._tails():
            tail.rewind()
        self._save()

    def _tails(self) -> list[_Tail]:
        return [*self._logs.tails(), *self._metrics.tails()]

    def _due(self) -> list[_Tail]:
        """What has more; once nothing more is written, also in files that were not seen before."""
        logs = self._logs.due(now=self._finished.is_set())
        return [*logs, *(tail for tail in self._metrics.tails() if tail.has_more())]

    def _save(self) -> None:
        self._saved_time = asyncio.get_running_loop().time()
        try:
            for tail in self._tails():
                tail.save()
        except OSError as error:
            # Without them a restarted agent sends more of what is stored already, no more than that.
            log.warning("%s: positions could not be written: %s", self._run, error)

    async def _stream(self) -> None:
        requests: asyncio.Queue[ingest_pb2.AppendRequest | None] = asyncio.Queue()
        producer = asyncio.create_task(self._produce(requests))
        call = self._stub.Append(_drain(requests))
        # Without a producer nothing would come to an end here.
        producer.add_done_callback(lambda _: _has_failed(producer) and call.cancel())
        watch = asyncio.create_task(self._watch(call))
        try:
            async for response in call:
                self._acknowledge(response.batch)
        except asyncio.CancelledError:
            if not _has_failed(producer) and (not watch.done() or watch.cancelled()):
                raise
        finally:
            # Also the library's own task that reads the queue has to end.
            requests.put_nowait(None)
            call.cancel()
            for task in (producer, watch):
                task.cancel()
            await asyncio.gather(producer, watch, return_exceptions=True)
        if _has_failed(producer):
            await producer
        if not self._finished.is_set() or self._pending or self._has_more():
            raise Unavailable("STREAM_ENDED", "The stream ended before everything was acknowledged.")

    async def _watch(self, call: Any) -> None:
        """Cancels a stream that takes and never acknowledges."""
        clock = asyncio.get_running_loop().time
        self._progress_time = clock()
        while clock() - self._progress_time < _STALL_SECONDS:
            await asyncio.sleep(1)
            if not self._pending:
                self._progress_time = clock()
        call.cancel()

    async def _produce(self, requests: "asyncio.Queue[ingest_pb2.AppendRequest | None]") -> None:
        while True:
            finishing = self._finished.is_set()
            self._changed.clear()
            sent = full = False
            for tail in await asyncio.to_thread(self._due):
                while len(self._pending) >= _WINDOW:
                    self._changed.clear()
                    await self._changed.wait()
                # In a thread: a large file must not hold up the leases.
                batch: Any = await asyncio.to_thread(tail.peek)
                if batch is not None:
                    sent = True
                    full = full or batch.payload.ByteSize() >= _FULL_BYTES
                    tail.advance(batch)
                    self._batch += 1
                    self._pending.append((self._batch, tail, batch.end))
                    requests.put_nowait(append_request(self._run, self._batch, batch.payload))
            if finishing and not sent and not self._pending:
                requests.put_nowait(None)
                return
            # Text that comes line by line would otherwise travel line by line, which costs all services.
            if not full:
                await self._pause(self._changed if finishing else self._finished)

    async def _pause(self, unless: asyncio.Event) -> None:
        try:
            async with asyncio.timeout(_POLL_SECONDS):
                await unless.wait()
        except TimeoutError:
            pass

    def _acknowledge(self, batch: int) -> None:
        while self._pending and self._pending[0][0] <= batch:
            _, tail, end = self._pending.popleft()
            tail.acknowledge(end)
        self._refusals = 0
        self._progress_time = asyncio.get_running_loop().time()
        if self._progress_time - self._saved_time > _SAVE_SECONDS:
            self._save()
        self._changed.set()

    def _has_more(self) -> bool:
        """Whether anything whole is left; a torn last record is not."""
        return any(tail.peek() is not None for tail in self._due())


def _has_failed(task: "asyncio.Task[None]") -> bool:
    return task.done() and not task.cancelled() and task.exception() is not None


async def _drain(
    requests: "asyncio.Queue[ingest_pb2.AppendRequest | None]",
) -> AsyncIterator[ingest_pb2.AppendRequest]:
    while (request := await requests.get()) is not None:
        yield request
