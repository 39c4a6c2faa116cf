"""Follows the journal from a sequence on, over restarts of NATS, without gap or repeat.

A short-lived pull consumer delivers; its place in the stream is kept here, so that a
new consumer continues exactly there. The ordered consumer of nats-py was not taken:
it gives up when its reset meets a server that is still away.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from datetime import datetime
from typing import Any

import nats.errors
import nats.js.errors
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from stellwerk_platform import positions
from stellwerk_platform.bus import Bus
from stellwerk_platform.errors import ResourceExhausted
from stellwerk_platform.names import WILDCARD
from stellwerk_protos.telemetry.v1 import telemetry_pb2
from stellwerk_telemetry.events.domain import to_proto

log = logging.getLogger(__name__)
_STREAM = "JOURNAL"
_BATCH = 200
_FETCH_SECONDS = 2.0
_RETRY_SECONDS = 0.2
_INACTIVE_SECONDS = 30.0
_NATS_ERRORS = (nats.errors.Error, nats.js.errors.Error, TimeoutError)


class Journal:
    """The stream as watchers see it."""

    def __init__(self, bus: Bus, limit: int = 500) -> None:
        self._bus = bus
        self._stream = bus.names.stream(_STREAM)
        self._free = limit

    async def next_sequence(self) -> int:
        """The sequence that the next event will have at least; raises `Unavailable`."""
        return await positions.next_sequence(self._bus, _STREAM)

    async def sequence_since(self, time: datetime) -> int:
        """The sequence of the first event from this time on; raises `Unavailable`."""
        return await positions.sequence_since(self._bus, _STREAM, time)

    async def watch(self, workspace: str, sequence: int) -> AsyncGenerator[telemetry_pb2.Event, None]:
        """Events of a workspace ("-" for all) from `sequence` on, for ever.

        Raises `ResourceExhausted` when there are too many watchers.
        """
        if self._free == 0:
            raise ResourceExhausted("TOO_MANY_WATCHES", "Too many watches are open.", "Close some.")
        self._free -= 1
        try:
            while True:
                try:
                    async with aclosing(self._consume(workspace, sequence)) as messages:
                        async for message in messages:
                            found = message.metadata.sequence.stream
                            if found < sequence:
                                continue
                            sequence = found + 1
                            try:
                                event = to_proto(found, message.data)
                            except ValueError as error:
                                log.error("Not a journal event: %s (%d)", error, found)
                                continue
                            yield event
                except _NATS_ERRORS as error:
                    log.info("A watch goes on at %d: %s", sequence, error or type(error).__name__)
                    await asyncio.sleep(_RETRY_SECONDS)
        finally:
            self._free += 1

    async def _consume(self, workspace: str, sequence: int) -> AsyncGenerator[Any, None]:
        """The messages of one consumer, until it breaks."""
        jetstream = self._bus.jetstream
        parts = ("journal", ">") if workspace == WILDCARD else ("journal", workspace, ">")
        config = ConsumerConfig(
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=sequence,
            ack_policy=AckPolicy.NONE,
            filter_subject=self._bus.names.subject(*parts),
            inactive_threshold=_INACTIVE_SECONDS,
            mem_storage=True,
        )
        consumer = await jetstream.add_consumer(self._stream, config)
        subscription = await jetstream.pull_subscribe_bind(consumer.name, self._stream)
        # A fetch waits for all that it asked for: ask for what is there, else for the next one.
        ahead = consumer.num_pending or 0
        try:
            while True:
                try:
                    messages = await subscription.fetch(min(max(ahead, 1), _BATCH), timeout=_FETCH_SECONDS)
                except (TimeoutError, nats.errors.TimeoutError):
                    ahead = 0
                    continue
                for message in messages:
                    yield message
                ahead = messages[-1].metadata.num_pending if messages else 0
        finally:
            with suppress(*_NATS_ERRORS):
                await subscription.unsubscribe()
                await jetstream.delete_consumer(self._stream, consumer.name)
