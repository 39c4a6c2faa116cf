"""The workers of a replica: keeps them alive, and gives each request to one that is free.

The queue is here and not in the workers, so that a death costs the one request that the
worker was at: whoever waits goes to another one. A worker whose `run` is quick is given
some requests ahead, for it would else wait for the front between two of them; they are
taken back when the one before them takes long, for another worker, or for their time-out.

Batching is adaptive: a worker that has nothing to do gets all that waits, at once. Only
when its last batch held several does it wait for as many again, and not longer than the
deployment allows or a call of `run` takes. So a single caller never waits.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from stellwerk_platform.errors import PlatformError, ResourceExhausted, Unavailable
from stellwerk_scorer.job import Job
from stellwerk_scorer.launch import Launch, Started
from stellwerk_scorer.usage import Usage
from stellwerk_scorer.worker_process import FAST_MICROSECONDS, LoadFailed, WorkerProcess

_FIRST_DELAY_SECONDS = 0.1
_LONGEST_DELAY_SECONDS = 10.0
# A worker that lived this long had started well: its death says nothing about the next one.
_STABLE_SECONDS = 30.0
_SWEEP_SECONDS = 0.02
# A worker at one `run` for this long gives back what it was given ahead.
_SLOW_SECONDS = 0.05
_AHEAD_ALONE, _AHEAD = 8, 4

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """How many workers, how long the queue, how large a batch and how long it may be waited for."""

    workers: int = 1
    max_queue: int = 1000
    max_batch_size: int = 1
    max_batch_wait_seconds: float = 0.005
    # Whether a worker whose `run` is quick gets requests before it has answered the last.
    hands_ahead: bool = True


class Pool:
    """`run()` supervises, `submit()` asks. `on_ready` hears of each change of readiness.

    `started` is a worker of this launch that runs already; it becomes the first.
    """

    def __init__(
        self,
        launch: Launch,
        settings: PoolSettings,
        on_ready: Callable[[bool], Awaitable[None]],
        started: Started | None = None,
    ) -> None:
        self._launch = launch
        self._running = started
        self._settings = settings
        self._on_ready = on_ready
        self._workers: list[WorkerProcess] = []
        self._queue: deque[Job] = deque()
        self._sweep: asyncio.TimerHandle | None = None
        self._batch_timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self.usage = Usage(settings.max_batch_size)
        # What the script is; empty until the first worker has loaded it.
        self.description: dict[str, Any] = {}
        self.started = 0
        self._ahead_alone, self._ahead = (_AHEAD_ALONE, _AHEAD) if settings.hands_ahead else (1, 1)

    @property
    def ready(self) -> bool:
        """Whether a request would be answered now."""
        return bool(self._workers)

    @property
    def batches(self) -> bool:
        """Whether requests are put together."""
        return self._settings.max_batch_size > 1 and bool(self.description.get("batches"))

    @property
    def pids(self) -> list[int]:
        """The processes of the workers that have loaded the script."""
        return [worker.pid for worker in self._workers]

    @property
    def queued(self) -> int:
        """Requests that no worker has yet."""
        return len(self._queue)

    def submit(self, job: Job) -> None:
        """Has a worker answer the job; raises `PlatformError` if that is out of the question now."""
        if not self._workers:
            raise Unavailable(
                "WORKER_NOT_READY", "The scoring script is being started.", "Ask again in some seconds."
            )
        if not self._queue and not self.batches:
            worker = self._free()
            if worker is not None:
                self._send(worker, (job,))
                self._watch()
                return
        if len(self._queue) >= self._settings.max_queue:
            raise ResourceExhausted(
                "QUEUE_FULL",
                f"{len(self._queue)} requests wait already.",
                "Ask again in some seconds, or let the deployment have more workers or replicas.",
            )
        self._queue.append(job)
        self._watch()
        if self.batches:
            self._pump()

    def abandon(self, job: Job) -> None:
        """Forgets a job, and ends the worker that is at it: for work that would go on for long."""
        job.is_canceled = True
        for worker in self._workers:
            worker.kill_if_at(job)

    async def run(self) -> None:
        """Keeps the workers alive until cancelled; raises `LoadFailed` if the first cannot load."""
        first: asyncio.Future[None] = self._loop.create_future()
        tasks = [asyncio.create_task(self._keep(first))]
        try:
            # The others start when it is known that the script can be loaded.
            await asyncio.wait([first, tasks[0]], return_when=asyncio.FIRST_COMPLETED)
            tasks += [asyncio.create_task(self._keep(None)) for _ in range(1, self._settings.workers)]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._sweep is not None:
                self._sweep.cancel()

    async def _keep(self, first: asyncio.Future[None] | None) -> None:
        delay = _FIRST_DELAY_SECONDS
        while True:
            begun = self._loop.time()
            worker: WorkerProcess | None = None
            try:
                worker = await self._start()
                await self._live(worker, first)
            except LoadFailed as error:
                if first is not None and not first.done():
                    raise
                log.error("the worker could not be restarted: %s: %s\n%s", error.reason, error, error.details)
            if (worker is not None and worker.has_answered) or self._loop.time() - begun > _STABLE_SECONDS:
                delay = _FIRST_DELAY_SECONDS
            log.warning("a new worker starts in %.1f s", delay)
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LONGEST_DELAY_SECONDS)

    async def _start(self) -> WorkerProcess:
        running, self._running = self._running, None
        if running is not None:
            return await WorkerProcess.adopt(running, self._freed, self._queue.appendleft)
        return await WorkerProcess.start(self._launch, self._freed, self._queue.appendleft)

    async def _live(self, worker: WorkerProcess, first: asyncio.Future[None] | None) -> None:
        """One life of a worker, from its loading to its end."""
        ended = asyncio.create_task(worker.ended())
        try:
            async with asyncio.timeout(self._launch.init_timeout_seconds + 5):
                description = await asyncio.shield(worker.loaded)
            self.description = self.description or description
            self._workers.append(worker)
            self.started += 1
            log.info("the scoring script is ready (worker %d)", self.started)
            if first is not None and not first.done():
                first.set_result(None)
            await self._on_ready(True)
            self._pump()
            await worker.lost
        except TimeoutError:
            worker.kill()
            message = "init() did not end in time and was ended; its traceback is above."
            raise LoadFailed("INIT_TIMEOUT", message) from None
        finally:
            if worker in self._workers:
                self._workers.remove(worker)
            if not self._workers:
                await self._on_ready(False)
            await worker.stop()
            log.info("the worker ended with code %d", await ended)
            self._died()

    def _died(self) -> None:
        """Those who waited for a worker that is gone are told, unless another one is there."""
        if self._workers:
            self._pump()
            return
        error = Unavailable(
            "WORKER_NOT_READY", "The scoring script is being started.", "Ask again in some seconds."
        )
        while self._queue:
            self._queue.popleft().finish(error)

    def _free(self) -> WorkerProcess | None:
        """The worker that is to have the next request, None while all have enough."""
        best: WorkerProcess | None = None
        ahead = self._ahead_alone if len(self._workers) == 1 else self._ahead
        for worker in self._workers:
            load = len(worker.parcels)
            if load and (load >= ahead or self.batches or worker.run_microseconds >= FAST_MICROSECONDS):
                continue
            if worker.is_doomed or worker.takes_back:
                continue
            if load == 0:
                return worker
            if best is None or load < len(best.parcels):
                best = worker
        return best

    def _freed(self, _worker: WorkerProcess) -> None:
        if self._queue:
            self._pump()

    def _pump(self) -> None:
        """Hands out what waits, as far as workers are free."""
        while self._queue:
            worker = self._free()
            if worker is None:
                return
            if not self.batches:
                self._send_first(worker)
                continue
            wait = self._batch_wait(worker)
            if wait > 0:
                if self._batch_timer is None:
                    self._batch_timer = self._loop.call_later(wait, self._batch_due)
                return
            if jobs := self._take_batch():
                self._send(worker, jobs)

    def _send_first(self, worker: WorkerProcess) -> None:
        job = self._queue.popleft()
        if job.deadline <= self._loop.time():
            job.finish(_late())
        elif not job.is_canceled:
            self._send(worker, (job,))

    def _send(self, worker: WorkerProcess, jobs: Sequence[Job]) -> None:
        self.usage.called(len(jobs))
        worker.send(jobs)

    def _batch_due(self) -> None:
        self._batch_timer = None
        self._pump()

    def _batch_wait(self, worker: WorkerProcess) -> float:
        """Seconds for which a batch should still be waited for."""
        if len(self._queue) >= min(worker.last_batch, self._settings.max_batch_size):
            return 0.0
        longest = min(self._settings.max_batch_wait_seconds, worker.run_microseconds / 1e6)
        return worker.free_since + longest - self._loop.time()

    def _take_batch(self) -> list[Job]:
        """The first of the queue, and those that may go with it."""
        jobs: list[Job] = []
        others: list[Job] = []
        while self._queue and len(jobs) < self._settings.max_batch_size:
            job = self._queue.popleft()
            if job.is_canceled:
                continue
            if not jobs or (job.batch_key is not None and job.batch_key == jobs[0].batch_key):
                jobs.append(job)
            else:
                others.append(job)
        self._queue.extendleft(reversed(others))
        return jobs

    def _watch(self) -> None:
        if self._sweep is None:
            self._sweep = self._loop.call_later(_SWEEP_SECONDS, self._look)

    def _look(self) -> None:
        """What time brings about: waiting ends, stuck workers end, work moves to who has none."""
        self._sweep = None
        now = self._loop.time()
        is_busy = bool(self._queue)
        for worker in self._workers:
            is_busy = is_busy or bool(worker.parcels)
            worker.kill_if_stuck(now)
            if worker.parcels and now - worker.busy_since > _SLOW_SECONDS:
                worker.take_back()
        self._expire(now)
        self._pump()
        if is_busy:
            self._watch()

    def _expire(self, now: float) -> None:
        if not any(job.deadline <= now for job in self._queue):
            return
        for job in [job for job in self._queue if job.deadline <= now]:
            with contextlib.suppress(ValueError):
                self._queue.remove(job)
            job.finish(_late())


def _late() -> PlatformError:
    return Unavailable(
        "QUEUE_TIMEOUT",
        "The request waited too long for its turn.",
        "Ask again later, or let the deployment have more workers or replicas.",
    )
