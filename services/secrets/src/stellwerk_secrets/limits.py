"""How much of Vault callers may take, and how long they wait for it."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from stellwerk_platform.errors import ResourceExhausted, Unavailable

T = TypeVar("T")
_PATIENCE_SECONDS = 3.0
_RETRY_SECONDS = 0.2


async def patiently(work: Callable[[], Awaitable[T]]) -> T:
    """Repeats `work` for some seconds while Vault is away: a restart takes one."""
    give_up = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return await work()
        except Unavailable:
            if time.monotonic() > give_up:
                raise
        await asyncio.sleep(_RETRY_SECONDS)


class Gate:
    """Lets some callers in, some wait, and turns the rest away with `ResourceExhausted`."""

    def __init__(self, running: int, waiting: int) -> None:
        self._semaphore = asyncio.Semaphore(running)
        self._free = running + waiting

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[None]:
        if self._free == 0:
            raise ResourceExhausted("SECRETS_BUSY", "Too many requests for tokens.", "Try again in a moment.")
        self._free -= 1
        try:
            async with self._semaphore:
                yield
        finally:
            self._free += 1
