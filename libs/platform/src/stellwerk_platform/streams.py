"""Streaming calls that live: asked again whether they may go on when something changes, and ended if not."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from google.protobuf.message import Message

from stellwerk_platform.auth import Caller, bearer
from stellwerk_platform.errors import PermissionDenied, PlatformError, Unauthenticated

log = logging.getLogger(__name__)
_SWEEP_SECONDS = 10.0
_RETRY_SECONDS = 2.0


@dataclass(eq=False)
class Stream:
    """One call. `error` is why it was ended, if it was."""

    task: "asyncio.Task[object]"
    # How many changes were known when it began.
    changes: int = 0
    caller: Caller | None = None
    bearer: str = field(default="", repr=False)
    permission: str = ""
    request: Message | None = None
    error: PlatformError | None = None
    timer: asyncio.TimerHandle | None = None

    def end(self, error: PlatformError) -> None:
        """Ends the call with this error as its status."""
        if self.error is None:
            self.error = error
            self.task.cancel()


Recheck = Callable[[Stream], Awaitable[Caller]]
_current: ContextVar[Stream] = ContextVar("stream")


class Streams:
    """Those of one server; `recheck` raises what a stream has to end with."""

    def __init__(self, recheck: Recheck) -> None:
        self._recheck = recheck
        self._living: set[Stream] = set()
        self._changes = 0
        self._checks: set[asyncio.Task[None]] = set()

    @contextmanager
    def open(self) -> Iterator[Stream]:
        """Around the whole of a streaming call, before anything is known of it."""
        task = asyncio.current_task()
        assert task is not None, "calls are handled in tasks"
        stream = Stream(task, self._changes)
        token = _current.set(stream)
        try:
            yield stream
        finally:
            _current.reset(token)
            self._living.discard(stream)
            if stream.timer is not None:
                stream.timer.cancel()

    def admitted(self, caller: Caller, metadata: object, permission: str, request: Message | None) -> None:
        """Says what the streaming call of this task, if it is one, was let in for, and with which key."""
        stream = _current.get(None)
        if stream is not None:
            stream.bearer, stream.permission, stream.request = bearer(metadata), permission, request
            self._living.add(stream)
            self._renew(stream, caller)
            if stream.changes != self._changes:
                # What came while it was being let in was not told to it.
                self._ask(stream)

    def changed(self, concerns: Callable[[Caller], bool]) -> None:
        """Asks again about the streams of these callers."""
        self._changes += 1
        for stream in self._living:
            if stream.caller is not None and concerns(stream.caller):
                self._ask(stream)

    async def sweep(self) -> None:
        """Asks again about all streams from time to time, for ever: what should tell may be away."""
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            for stream in list(self._living):
                await self._check(stream)

    def _renew(self, stream: Stream, caller: Caller) -> None:
        """A token ends at its time; a key is only asked about again."""
        stream.caller = caller
        loop = asyncio.get_running_loop()
        self._again(stream, max(caller.expire_time - time.time(), 0.0) + 0.01, loop)

    def _again(self, stream: Stream, seconds: float, loop: asyncio.AbstractEventLoop) -> None:
        if stream.timer is not None:
            stream.timer.cancel()
        stream.timer = loop.call_later(seconds, self._ask, stream)

    def _ask(self, stream: Stream) -> None:
        task = asyncio.ensure_future(self._check(stream))
        self._checks.add(task)
        task.add_done_callback(self._checks.discard)

    async def _check(self, stream: Stream) -> None:
        try:
            caller = await self._recheck(stream)
        except (Unauthenticated, PermissionDenied) as error:
            if stream in self._living:
                log.info("A stream of %s ends: %s", stream.caller and stream.caller.subject, error.reason)
                stream.end(error)
        except PlatformError:
            if stream in self._living:
                self._again(stream, _RETRY_SECONDS, asyncio.get_running_loop())
        else:
            if stream in self._living:
                self._renew(stream, caller)
