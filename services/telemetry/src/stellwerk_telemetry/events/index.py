"""Keeps the index of the journal.

The order of events does not matter here, so they are taken in batches: what has come
while the last batch was written is the next one.
"""

import asyncio
import logging
from contextlib import suppress
from typing import Any

import nats.errors
from pymongo.errors import PyMongoError

from stellwerk_platform.bus import Bus
from stellwerk_platform.documents import Document
from stellwerk_telemetry.events.domain import to_document
from stellwerk_telemetry.events.store import Events

log = logging.getLogger(__name__)
_DURABLE = "telemetry-index"
_BATCH = 500
_ACK_WAIT_SECONDS = 60.0
_RETRY_SECONDS = 1.0


async def run(bus: Bus, events: Events) -> None:
    """Indexes the whole journal and what comes, for ever."""
    subscription = await bus.subscribe(
        "JOURNAL",
        _DURABLE,
        [bus.names.subject("journal", ">")],
        max_ack_pending=2 * _BATCH,
        ack_wait_seconds=_ACK_WAIT_SECONDS,
    )
    while True:
        messages = [await subscription.next_msg(timeout=None)]
        while len(messages) < _BATCH and subscription.pending_msgs:
            messages.append(await subscription.next_msg(timeout=1))
        await _store(events, [document for m in messages if (document := _document(m)) is not None])
        # One that gets lost is only a repetition.
        with suppress(nats.errors.Error):
            for message in messages:
                await message.ack()


def _document(message: Any) -> Document | None:
    try:
        return to_document(message.metadata.sequence.stream, message.data)
    except ValueError as error:
        log.error("Not a journal event: %s (%s)", error, message.subject)
        return None


async def _store(events: Events, documents: list[Document]) -> None:
    while documents:
        try:
            return await events.insert(documents)
        except PyMongoError as error:
            log.warning("The index waits for MongoDB: %s", str(error)[:300])
            await asyncio.sleep(_RETRY_SECONDS)
