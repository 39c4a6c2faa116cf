"""`AsyncCore` on a thread of its own, with blocking methods of the same names.

One thread runs one event loop; blocking callers hand it coroutines. So the blocking client also works
where an event loop runs already, as in notebooks.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import grpc

from stellwerk import git
from stellwerk._async.core import AsyncCore, Request, Response
from stellwerk.settings import Settings
from stellwerk_protos.common.v1 import common_pb2

T = TypeVar("T")


class Core:
    """See `AsyncCore`."""

    def __init__(self, settings: Settings) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="stellwerk", daemon=True)
        self._thread.start()
        try:
            self._core = self._run(_make(settings))
        except BaseException:
            self._stop()
            raise
        self.settings = settings
        self.channel = self._core.channel

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """Waits for `work`; an interrupt of the caller ends it too."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def close(self) -> None:
        """Ends all connections and the thread; closing twice is harmless."""
        if not self._loop.is_closed():
            self._run(self._core.close())
            self._stop()

    def call(self, method: grpc.aio.UnaryUnaryMultiCallable[Request, Response], request: Request) -> Response:
        """See `AsyncCore.call`."""
        return self._run(self._core.call(method, request))

    def stream(
        self, method: grpc.aio.UnaryStreamMultiCallable[Request, Response], request: Request
    ) -> Iterator[Response]:
        """See `AsyncCore.stream`."""
        answers = self._core.stream(method, request)
        try:
            while (answer := self._run(_next(answers))) is not None:
                yield answer
        finally:
            # A stream that nobody reads to its end may outlive its client.
            if not self._loop.is_closed():
                self._run(_close(answers))

    def pages(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        limit: int | None = None,
    ) -> list[Response]:
        """See `AsyncCore.pages`."""
        return self._run(self._core.pages(method, request, limit))

    def upload(self, workspace: str, path: Path, *, ignore: bool = False) -> list[common_pb2.File]:
        """See `AsyncCore.upload`."""
        return self._run(self._core.upload(workspace, path, ignore=ignore))

    def git(self, folder: Path) -> git.Facts:
        """See `AsyncCore.git`."""
        return self._run(self._core.git(folder))

    def download(self, workspace: str, files: Sequence[common_pb2.File], folder: Path) -> None:
        """See `AsyncCore.download`."""
        self._run(self._core.download(workspace, files, folder))

    def post(self, path: str, body: bytes) -> bytes:
        """See `AsyncCore.post`."""
        return self._run(self._core.post(path, body))


async def _make(settings: Settings) -> AsyncCore:
    return AsyncCore(settings)


async def _next(answers: AsyncIterator[T]) -> T | None:
    return await anext(answers, None)


async def _close(answers: AsyncIterator[Any]) -> None:
    close = getattr(answers, "aclose", None)
    if close is not None:
        await close()
