"""Asks each replica all the time whether it can work, and takes one out that says no or nothing.

`inference` decides once that a replica is ready; what happens to it later is seen here first.
"""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stellwerk_gateway.scoring.connection import Connection
from stellwerk_gateway.scoring.usage import Usage

if TYPE_CHECKING:
    from stellwerk_gateway.scoring.replica import Replica

# The second header asks for what the replica uses, in a header of the answer.
_REQUEST = (
    b"GET /v2/health/ready HTTP/1.1\r\nhost: replica\r\nx-stellwerk-usage: 1\r\ncontent-length: 0\r\n%b\r\n"
)
_INTERVAL_SECONDS = 2.0
_ANSWER_SECONDS = 2.0
# So many questions without an answer in a row take a replica out; a "no" does at once.
_MISSES = 2
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.05, 1.0


async def watch(replica: "Replica") -> None:
    """Keeps a replica's fitness up to date for ever."""
    while True:
        await _until_out(replica)
        await _until_back(replica)


async def _until_out(replica: "Replica") -> None:
    misses = 0
    while not replica.is_out:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_INTERVAL_SECONDS):
                await replica.probe_wanted.wait()
        replica.probe_wanted.clear()
        replica.trim()
        if replica.is_out:
            return
        status = await ask(replica)
        misses = misses + 1 if status is None else 0
        if status not in (None, 200) or misses >= _MISSES:
            replica.eject(0.0)


async def _until_back(replica: "Replica") -> None:
    await asyncio.sleep(max(0.0, replica.out_until - time.monotonic()))
    pause = _FIRST_PAUSE_SECONDS
    while await ask(replica) != 200:
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_PAUSE_SECONDS)
    replica.probe_wanted.clear()
    replica.readmit()


async def ask(replica: "Replica") -> int | None:
    """The status of one question for readiness; None without an answer."""
    connection: Connection | None = None
    authorization = await replica.authorization()
    shown = f"authorization: {authorization}\r\n" if authorization else ""
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            connection = replica.idle() or await replica.connect()
            asker = _Asker()
            connection.ask(asker, _REQUEST % shown.encode(), is_whole=True)
            status = await asker.status
            replica.usage = asker.usage or replica.usage
            return status
    except (OSError, TimeoutError):
        if connection is not None:
            connection.abandon()
        return None


class _Asker:
    """Waits for the status, and notes what the replica says that it uses."""

    def __init__(self) -> None:
        self.status: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self.usage: Usage | None = None
        self._status = 0

    def answer_head(self, status: int, headers: Sequence[tuple[bytes, bytes]], length: int | None) -> None:
        self._status = status
        for name, value in headers:
            if name == b"x-stellwerk-usage":
                self.usage = Usage.parse(value)

    def answer_body(self, data: bytes) -> None:
        pass

    def answer_end(self) -> None:
        if not self.status.done():
            self.status.set_result(self._status)

    def answer_flush(self) -> None:
        pass

    def lost(self, answered: bool) -> None:
        if not self.status.done():
            self.status.set_result(None)

    def writable(self, yes: bool) -> None:
        pass
