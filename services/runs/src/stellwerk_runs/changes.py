"""Wakes whoever waits for a run: its state has changed, or more of its metrics or logs is stored.

Core NATS, so that it works between replicas; a message that is lost only costs
time, because everyone who waits also looks by himself every two seconds.
"""

import asyncio
import json
import logging
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from nats.aio.msg import Msg

from stellwerk_platform.bus import Bus

log = logging.getLogger(__name__)
_POLL_SECONDS = 2.0


class Changed:
    """One that waits."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        """Wakes it."""
        self._event.set()

    def clear(self) -> None:
        """Call before looking at the state, so that a change while looking is not missed."""
        self._event.clear()

    async def wait(self, timeout_seconds: float = _POLL_SECONDS) -> None:
        """Returns after a change, or when it is time to look without one."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._event.wait()
        except TimeoutError:
            pass


class Changes:
    """The subscription of this process, shared by all that wait."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._waiting: dict[str, set[Changed]] = defaultdict(set)

    async def open(self) -> None:
        """Subscribes; the subscription ends with the connection."""
        journal = self._bus.names.subject("journal", "*", "runs", "run", "*")
        await self._bus.client.subscribe(journal, cb=self._on_event)
        await self._bus.client.subscribe(self._bus.names.subject("stored", "run"), cb=self._on_stored)

    async def announce(self, run: str) -> None:
        """Says that more of a run is stored."""
        await self._bus.client.publish(self._bus.names.subject("stored", "run"), run.encode())

    @contextmanager
    def watch(self, run: str) -> Iterator[Changed]:
        """Something that is woken by changes of the run."""
        changed = Changed()
        self._waiting[run].add(changed)
        try:
            yield changed
        finally:
            self._waiting[run].discard(changed)
            if not self._waiting[run]:
                del self._waiting[run]

    async def _on_event(self, message: Msg) -> None:
        if self._waiting:
            self._wake(json.loads(message.data)["subject"])

    async def _on_stored(self, message: Msg) -> None:
        self._wake(message.data.decode())

    def _wake(self, run: str) -> None:
        for changed in self._waiting.get(run, ()):
            changed.set()
