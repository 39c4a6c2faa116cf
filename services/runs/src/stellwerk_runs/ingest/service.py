"""IngestService: check, publish, and answer in order once JetStream has stored it."""

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, TypeAlias

from stellwerk_platform import failpoints
from stellwerk_platform.access import Guard
from stellwerk_platform.auth import Caller, current_caller
from stellwerk_platform.bus import Bus
from stellwerk_platform.errors import Unavailable
from stellwerk_protos.runs.v1 import ingest_pb2 as pb
from stellwerk_protos.runs.v1 import ingest_pb2_grpc
from stellwerk_runs.ingest.domain import LOGS, check, kind_of, message_id, pieces, source_of
from stellwerk_runs.ingest.sources import logs, sources
from stellwerk_runs.ingest.streams import Streams
from stellwerk_runs.logs.replicas import Owners

# Requests of one caller that are published and not answered yet.
_IN_FLIGHT_REQUESTS = 32
# Pieces of all callers that are on their way to JetStream, of 256 KiB each at most.
_IN_FLIGHT_PIECES = 256
# How long a piece is tried before the sender is told to come again.
_PATIENCE_SECONDS = 15.0
_RETRY_SECONDS = 0.2

_Queue: TypeAlias = "asyncio.Queue[tuple[int, list[asyncio.Task[None]]] | Exception | None]"


class IngestService(ingest_pb2_grpc.IngestServiceServicer):
    """The servicer."""

    def __init__(self, bus: Bus, runs: Owners, streams: Streams, guard: Guard) -> None:
        self._bus = bus
        self._runs = runs
        self._guard = guard
        self._streams = streams
        self._sources = sources()
        self._logs = logs()
        self._room = asyncio.Semaphore(_IN_FLIGHT_PIECES)

    async def Append(
        self, request_iterator: AsyncIterator[pb.AppendRequest], context: Any
    ) -> AsyncIterator[pb.AppendResponse]:
        queue: _Queue = asyncio.Queue(_IN_FLIGHT_REQUESTS)
        publishing: set[asyncio.Task[None]] = set()
        reader = asyncio.create_task(self._read(request_iterator, current_caller(), queue, publishing))
        try:
            while (item := await queue.get()) is not None:
                # An error comes after the answers to all that was sent before it.
                if isinstance(item, Exception):
                    raise item
                batch, stored = item
                await asyncio.gather(*stored)
                failpoints.hit("ingest.stored")
                yield pb.AppendResponse(batch=batch)
        finally:
            reader.cancel()
            for task in publishing:
                task.cancel()
            await asyncio.gather(reader, *publishing, return_exceptions=True)

    async def _read(
        self,
        requests: AsyncIterator[pb.AppendRequest],
        caller: Caller,
        queue: _Queue,
        publishing: set[asyncio.Task[None]],
    ) -> None:
        try:
            async for request in requests:
                await self._guard.authorise(caller, "run.append", request)
                check(request)
                born = await self._runs.check(request.run)
                if kind_of(request) == LOGS:
                    self._logs.check(request.run, request.log.log)
                else:
                    self._sources.check(request.run, source_of(request))
                self._streams.forget(request.run)
                tasks = []
                for piece in pieces(request):
                    await self._room.acquire()
                    tasks.append(asyncio.create_task(self._publish(piece, born)))
                    publishing.add(tasks[-1])
                    tasks[-1].add_done_callback(partial(self._published, publishing))
                await queue.put((request.batch, tasks))
            await queue.put(None)
        except Exception as error:
            await queue.put(error)

    async def _publish(self, piece: pb.AppendRequest, born: int) -> None:
        """Returns once the piece is stored; while the stream is full, the sender is held back.

        `born`, when the run was made, keeps it apart from a run of that name in a workspace that is gone.
        """
        body = piece.SerializeToString(deterministic=True)
        subject = self._streams.subject(kind_of(piece), piece.run)
        headers = {"Nats-Msg-Id": f"{message_id(body)}-{born}"}
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                await self._bus.publish(subject, body, headers)
                return
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(_RETRY_SECONDS)

    def _published(self, publishing: set[asyncio.Task[None]], task: asyncio.Task[None]) -> None:
        # Here and not in the task, which never begins when the sender is gone before its turn.
        self._room.release()
        publishing.discard(task)
        # Seen by the answer that waits for it; after the first error nobody waits for the others.
        if not task.cancelled():
            task.exception()
