"""Wakes whoever waits for a change of endpoints, deployments or replicas.

Core NATS on the journal's own subjects, so that it works between processes; a message
that is lost only costs time, because everyone who waits also looks every few seconds.
"""

import asyncio
import contextlib
from collections.abc import Iterator

from nats.aio.msg import Msg

from stellwerk_platform.bus import Bus

_POLL_SECONDS = 2.0


class Waiter:
    """One that waits. Call `next` before looking at the state."""

    def __init__(self, resource: str) -> None:
        self.resource = resource
        self.event = asyncio.Event()
        self.event.set()

    async def next(self, timeout_seconds: float = _POLL_SECONDS) -> None:
        """Returns at once the first time, then after a change or when it is time to look without one."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self.event.wait()
        self.event.clear()


class Changes:
    """The subscription of this process, shared by all that wait."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._waiters: set[Waiter] = set()

    async def open(self) -> None:
        """Subscribes; the subscription ends with the connection."""
        await self._bus.client.subscribe(
            self._bus.names.subject("journal", "*", "inference", "*", "*"), cb=self._wake
        )

    @contextlib.contextmanager
    def watch(self, resource: str = "") -> Iterator[Waiter]:
        """Something that every change wakes, or events of one kind of resource alone (`batch_job`)."""
        waiter = Waiter(resource)
        self._waiters.add(waiter)
        try:
            yield waiter
        finally:
            self._waiters.discard(waiter)

    async def _wake(self, message: Msg) -> None:
        self.wake(message.subject.split(".")[-2])

    def wake(self, resource: str = "") -> None:
        """Wakes those that wait in this process, without a `resource` for a change that is no event."""
        for waiter in self._waiters:
            if waiter.resource in ("", resource):
                waiter.event.set()
