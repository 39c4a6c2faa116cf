"""Keeps what MongoDB holds of a stream: the index of the journal, the activity log.

The order in which messages are stored does not matter, so they are taken in batches:
what has come while the last batch was written is the next one.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import nats.errors
import nats.js.errors
from pymongo.errors import PyMongoError

from stellwerk_platform.bus import Bus
from stellwerk_platform.documents import Document

log = logging.getLogger(__name__)
_BATCH = 500
_ACK_WAIT_SECONDS = 60.0
_RETRY_SECONDS = 1.0


@dataclass(frozen=True)
class Source:
    """A durable consumer of a stream, and what becomes of its messages."""

    stream: str
    durable: str
    # The first part of its subjects after the namespace.
    subjects: str
    # Sequence and body as a document; raises `ValueError` for what is no message of this stream.
    read: Callable[[int, bytes], Document]


async def rewind(bus: Bus, source: Source) -> None:
    """Has the stream delivered from its beginning: what was made of it has been dropped."""
    try:
        await bus.jetstream.delete_consumer(bus.names.stream(source.stream), source.durable)
    except nats.js.errors.NotFoundError:
        return
    log.info("%s is delivered anew to %s", source.stream, source.durable)


async def run(bus: Bus, source: Source, insert: Callable[[list[Document]], Awaitable[None]]) -> None:
    """Stores the whole stream and what comes, for ever; `insert` takes what is there already again."""
    subscription = await bus.subscribe(
        source.stream,
        source.durable,
        [bus.names.subject(source.subjects, ">")],
        max_ack_pending=2 * _BATCH,
        ack_wait_seconds=_ACK_WAIT_SECONDS,
    )
    while True:
        messages = [await subscription.next_msg(timeout=None)]
        while len(messages) < _BATCH and subscription.pending_msgs:
            messages.append(await subscription.next_msg(timeout=1))
        documents = [document for m in messages if (document := _document(source, m)) is not None]
        await _store(source, insert, documents)
        # One that gets lost is only a repetition.
        with suppress(nats.errors.Error):
            for message in messages:
                await message.ack()


def _document(source: Source, message: Any) -> Document | None:
    try:
        return source.read(message.metadata.sequence.stream, message.data)
    except ValueError as error:
        log.error("Not a message of %s: %s (%s)", source.stream, error, message.subject)
        return None


async def _store(
    source: Source, insert: Callable[[list[Document]], Awaitable[None]], documents: list[Document]
) -> None:
    while documents:
        try:
            return await insert(documents)
        except PyMongoError as error:
            log.warning("%s waits for MongoDB: %s", source.durable, str(error)[:300])
            await asyncio.sleep(_RETRY_SECONDS)
