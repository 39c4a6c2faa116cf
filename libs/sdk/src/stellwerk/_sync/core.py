"""`AsyncCore` on a thread of its own, with blocking methods of the same names.

One thread runs one event loop; blocking callers hand it coroutines. So the blocking client also works
where an event loop runs already, as in notebooks.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Generic, TypeVar

import grpc

from stellwerk import git
from stellwerk._async.core import AsyncCore, Request, Response
from stellwerk.settings import Settings
from stellwerk_protos.common.v1 import common_pb2
from stellwerk_protos.runs.v1 import runs_pb2

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

    def spawn(self, work: Callable[[AsyncCore], Coroutine[Any, Any, T]]) -> "Future[T]":
        """Starts `work` in the background; it ends with the connection at the latest."""
        return asyncio.run_coroutine_threadsafe(work(self._core), self._loop)

    def wait(self, work: Callable[[AsyncCore], Coroutine[Any, Any, T]]) -> T:
        """Runs `work` to its end."""
        return self._run(work(self._core))

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def close(self) -> None:
        """Ends all connections and the thread; closing twice is harmless."""
        if not self._loop.is_closed():
            self._run(_cancel_others())
            self._run(self._core.close())
            self._stop()

    def call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        *,
        files: int = 0,
    ) -> Response:
        """See `AsyncCore.call`."""
        return self._run(self._core.call(method, request, files=files))

    def stream(
        self,
        method: grpc.aio.UnaryStreamMultiCallable[Request, Response],
        request: Request,
        on_start: Callable[[Mapping[str, str]], None] | None = None,
    ) -> Iterator[Response]:
        """See `AsyncCore.stream`."""
        return self._iterate(self._core.stream(method, request, on_start))

    def _iterate(self, answers: AsyncIterator[Response]) -> Iterator[Response]:
        steps = _Steps(answers)
        try:
            while (answer := self._run(steps.next())) is not None:
                yield answer
        finally:
            # A stream that nobody reads to its end may outlive its client.
            if not self._loop.is_closed():
                self._run(steps.close())

    def once(
        self, method: grpc.aio.UnaryStreamMultiCallable[Request, Response], request: Request
    ) -> Iterator[Response]:
        """See `AsyncCore.once`."""
        return self._iterate(self._core.once(method, request))

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

    def upload_bytes(self, workspace: str, data: bytes, label: str) -> str:
        """See `AsyncCore.upload_bytes`."""
        return self._run(self._core.upload_bytes(workspace, data, label))

    def git(self, folder: Path, workspace: str) -> git.Facts:
        """See `AsyncCore.git`."""
        return self._run(self._core.git(folder, workspace))

    def download(
        self, workspace: str, files: Sequence[common_pb2.File], folder: Path, *, overwrite: bool = True
    ) -> None:
        """See `AsyncCore.download`."""
        self._run(self._core.download(workspace, files, folder, overwrite=overwrite))

    def read_blob(self, workspace: str, sha256: str) -> bytes:
        """See `AsyncCore.read_blob`."""
        return self._run(self._core.read_blob(workspace, sha256))

    def download_zip(self, workspace: str, files: Sequence[common_pb2.File], target: Path) -> None:
        """See `AsyncCore.download_zip`."""
        self._run(self._core.download_zip(workspace, files, target))

    def pause(self, seconds: float) -> None:
        """Waits for so long."""
        time.sleep(seconds)

    def ship(self, folder: Path) -> runs_pb2.Run:
        """See `AsyncCore.ship`."""
        return self._run(self._core.ship(folder))

    def post(self, path: str, body: bytes) -> bytes:
        """See `AsyncCore.post`."""
        return self._run(self._core.post(path, body))


async def _make(settings: Settings) -> AsyncCore:
    return AsyncCore(settings)


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


class _Steps(Generic[T]):
    """A stream, answer by answer. A caller that is interrupted leaves a step that has not ended yet."""

    def __init__(self, answers: AsyncIterator[T]) -> None:
        self._answers = answers
        self._step: asyncio.Task[Any] | None = None

    async def next(self) -> T | None:
        self._step = asyncio.current_task()
        return await anext(self._answers, None)

    async def close(self) -> None:
        if self._step is not None and not self._step.done():
            # Once: a second cancel would end what it does at its end.
            if not self._step.cancelling():
                self._step.cancel()
            await asyncio.wait([self._step])
        close = getattr(self._answers, "aclose", None)
        if close is not None:
            await close()
