"""Keeps a worker alive and hands it one request at a time.

The queue is here and not in the socket, so that a death of the worker costs the one
request that it had: whoever still waits can be sent again, and is told so.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from stellwerk_platform.errors import Unavailable
from stellwerk_scorer.worker_process import LoadFailed, Result, WorkerProcess, timed_out

_FIRST_DELAY_SECONDS = 0.1
_LONGEST_DELAY_SECONDS = 10.0
# A worker that lived this long had started well: its death says nothing about the next one.
_STABLE_SECONDS = 30.0
# The token that let a request in may do everything that the gateway may: user code must not see it.
_HIDDEN_HEADERS = frozenset({"authorization", "proxy-authorization"})

log = logging.getLogger(__name__)


class WorkerClient:
    """`run()` supervises; `score()` asks. `on_ready` hears of each change of readiness."""

    def __init__(self, python: str, script: str, on_ready: Callable[[bool], Awaitable[None]]) -> None:
        self._python = python
        self._script = script
        self._on_ready = on_ready
        self._worker: WorkerProcess | None = None
        self._wants_headers = False
        self._slot = asyncio.Semaphore(1)

    @property
    def ready(self) -> bool:
        """Whether a request would be answered now."""
        return self._worker is not None

    async def run(self) -> None:
        """Keeps a worker running until cancelled; raises `LoadFailed` if the first cannot load the script."""
        started_before, delay = False, _FIRST_DELAY_SECONDS
        while True:
            start_time = time.monotonic()
            try:
                await self._live()
            except LoadFailed as error:
                if not started_before:
                    raise
                log.error("the worker could not be restarted: %s: %s\n%s", error.reason, error, error.details)
            started_before = True
            if time.monotonic() - start_time > _STABLE_SECONDS:
                delay = _FIRST_DELAY_SECONDS
            log.warning("a new worker starts in %.1f s", delay)
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LONGEST_DELAY_SECONDS)

    async def score(
        self, body: bytes, headers: Mapping[str, str], timeout_seconds: float, *, tensors: bool = False
    ) -> Result:
        """What `run` returns for a body; raises `PlatformError`."""
        deadline = time.monotonic() + timeout_seconds
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._slot.acquire()
        except TimeoutError:
            raise timed_out("The request waited too long for its turn.") from None
        if self._worker is None or self._worker.is_doomed:
            self._slot.release()
            raise Unavailable(
                "WORKER_NOT_READY", "The scoring script is being started.", "Ask again in some seconds."
            )
        metadata: dict[str, Any] = {"tensors": tensors}
        if self._wants_headers:
            metadata["headers"] = {k: v for k, v in headers.items() if k.lower() not in _HIDDEN_HEADERS}
        answer = self._worker.send(body, metadata, max(deadline - time.monotonic(), 0.001))
        # Not when this task ends: its client may go while the worker is still busy with the request.
        answer.add_done_callback(lambda _answer: self._slot.release())
        return await asyncio.shield(answer)

    async def _live(self) -> None:
        """One life of a worker, from start to end."""
        worker = await WorkerProcess.start(self._python, self._script)
        ended = asyncio.create_task(worker.ended())
        try:
            self._wants_headers = await worker.loaded
            self._worker = worker
            log.info("the scoring script is ready")
            await self._on_ready(True)
            await worker.lost
            self._worker = None
            await self._on_ready(False)
        finally:
            self._worker = None
            await worker.stop()
            log.info("the worker ended with code %d", await ended)
