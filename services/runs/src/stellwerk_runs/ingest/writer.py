"""Moves what JetStream holds to MongoDB, in batches: one transaction a run and batch, or a few where
it brings very many metrics.

A message is acknowledged, and with that removed from the stream, after the commit.
Killed in between, the writer gets it once more and the store knows it already.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import nats.errors
from google.protobuf.message import DecodeError
from nats.aio.msg import Msg
from pymongo.errors import ConnectionFailure, PyMongoError

from stellwerk_platform import failpoints
from stellwerk_platform.bus import Bus, kept
from stellwerk_protos.runs.v1.ingest_pb2 import AppendRequest
from stellwerk_runs.changes import Changes
from stellwerk_runs.ingest.domain import PIECE_BYTES, PIECE_COLUMNS, RECORDS
from stellwerk_runs.ingest.store import IngestStore, Message
from stellwerk_runs.ingest.streams import STREAMS

if TYPE_CHECKING:
    from nats.aio.subscription import Subscription

log = logging.getLogger(__name__)
# Messages in flight to this process: 96 MiB at most. A record of 1 MiB is one piece.
_UNACKNOWLEDGED = 384
_UNACKNOWLEDGED_RECORDS = 96
_BATCH_MESSAGES = 256
_BATCH_BYTES = 32 * PIECE_BYTES
# A transaction with tens of thousands of documents outlives its time limit, or MongoDB's cache, for ever.
_TRANSACTION_COLUMNS = 2 * PIECE_COLUMNS
_LINGER_SECONDS = 0.02
_CONCURRENT_RUNS = 8
_REFUSED_SECONDS = 5.0


class Writer:
    """The consumer of one of the streams; replicas share it."""

    def __init__(self, bus: Bus, store: IngestStore, changes: Changes, kind: str) -> None:
        self._bus = bus
        self._store = store
        self._changes = changes
        self._kind = kind
        self._slots = asyncio.Semaphore(_CONCURRENT_RUNS)

    async def run(self) -> None:
        """Writes for ever."""
        subscription = await self._bus.subscribe(
            STREAMS[self._kind],
            f"runs-{self._kind}",
            [self._bus.names.subject(self._kind, ">")],
            max_ack_pending=_UNACKNOWLEDGED_RECORDS if self._kind == RECORDS else _UNACKNOWLEDGED,
        )
        while True:
            batch = await self._batch(subscription)
            failpoints.hit("writer.received")
            await self._write_batch(batch)

    async def _batch(self, subscription: "Subscription") -> list[Msg]:
        """What is there, after a moment in which more can come."""
        batch = [await subscription.next_msg(timeout=None)]
        size = len(batch[0].data)
        if subscription.pending_msgs < _BATCH_MESSAGES:
            await asyncio.sleep(_LINGER_SECONDS)
        while subscription.pending_msgs and len(batch) < _BATCH_MESSAGES and size < _BATCH_BYTES:
            batch.append(await subscription.next_msg())
            size += len(batch[-1].data)
        return batch

    async def _write_batch(self, batch: Sequence[Msg]) -> None:
        by_run: dict[str, list[tuple[Msg, AppendRequest]]] = defaultdict(list)
        for message in batch:
            try:
                piece = AppendRequest.FromString(message.data)
            except DecodeError:
                log.error("A message of %s is no append; it is dropped", message.subject)
                await message.term()
                continue
            by_run[piece.run].append((message, piece))
        async with kept(batch):
            await asyncio.gather(*(self._write_run(run, pairs) for run, pairs in by_run.items()))

    async def _write_run(self, run: str, pairs: Sequence[tuple[Msg, AppendRequest]]) -> None:
        for portion in _portions(pairs):
            messages = [Message(str(index), piece) for index, (_, piece) in enumerate(portion)]
            async with self._slots:
                refused = await self._write(run, messages)
            for index, (message, _) in enumerate(portion):
                with suppress(nats.errors.Error):
                    if str(index) in refused:
                        await message.nak(_REFUSED_SECONDS)
                    else:
                        await message.ack()
            failpoints.hit("writer.acknowledged")
        with suppress(nats.errors.Error):
            await self._changes.announce(run)

    async def _write(self, run: str, messages: Sequence[Message]) -> set[str]:
        delay = 0.1
        while True:
            try:
                return await self._store.write(self._kind, run, messages)
            except ConnectionFailure as error:
                log.warning("%s of %s wait %.1f s for MongoDB: %.300s", self._kind, run, delay, error)
                await asyncio.sleep(delay)
                delay = min(delay * 2, 2.0)
            except PyMongoError as error:
                # What MongoDB refuses must not keep the other runs waiting; it comes again.
                log.error("MongoDB refuses %s of %s: %.300s", self._kind, run, error)
                return {message.id for message in messages}


def _portions(
    pairs: Sequence[tuple[Msg, AppendRequest]],
) -> Iterator[Sequence[tuple[Msg, AppendRequest]]]:
    """What is written in one transaction each."""
    portion: list[tuple[Msg, AppendRequest]] = []
    columns = 0
    for pair in pairs:
        size = len(pair[1].metrics.columns)
        if portion and columns + size > _TRANSACTION_COLUMNS:
            yield portion
            portion, columns = [], 0
        portion.append(pair)
        columns += size
    if portion:
        yield portion
