"""One life of a worker: start it, hand it requests, take its answers, see it end."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from stellwerk_platform.errors import PlatformError
from stellwerk_scorer.domain import WorkerDied, timed_out, worker_error
from stellwerk_scorer.job import Answer, Job
from stellwerk_scorer.launch import Launch, Started
from stellwerk_scorer.worker import frames

# The worker interrupts `run` at its time-out by itself; code that does not let it is killed this much later.
KILL_AFTER_SECONDS = 1.0
# A worker whose `run` takes less has more than one request in hand, so that it need not wait for the next.
FAST_MICROSECONDS = 5_000
_STOP_SECONDS = 2.0
_REVOKE_SECONDS = 0.01
_SHOWN_DETAILS = 20_000


class LoadFailed(Exception):
    """The worker could not load the script: a stable reason, a sentence, and the traceback for the log."""

    def __init__(self, reason: str, message: str, details: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.details = details[-_SHOWN_DETAILS:]


@dataclass(slots=True, eq=False)
class _Parcel:
    """A frame in the worker's hands: one job, or the jobs of a batch, which are answered in their order."""

    first_id: int
    jobs: Sequence[Job]
    answered: int = 0


class WorkerProcess(asyncio.Protocol):
    """The front's end of the socket; `loaded` and `lost` are the two events of its life."""

    def __init__(self, on_free: Callable[["WorkerProcess"], None], returned: Callable[[Job], None]) -> None:
        loop = asyncio.get_running_loop()
        # What the script is, or LoadFailed when it cannot serve.
        self.loaded: asyncio.Future[dict[str, Any]] = loop.create_future()
        self.lost: asyncio.Future[None] = loop.create_future()
        # Set when it is about to be killed: who comes next must not be given to it.
        self.is_doomed = False
        self.has_answered = False
        self.parcels: deque[_Parcel] = deque()
        # Of the loop's clock: when the first parcel came to be the first.
        self.busy_since = 0.0
        self.free_since = 0.0
        self.last_batch = 1
        # How long it is at a request, or at a batch, on average.
        self.run_microseconds = float(FAST_MICROSECONDS)
        self._loop = loop
        self._on_free = on_free
        self._returned = returned
        self._process: subprocess.Popen[bytes]
        self._exit: asyncio.Task[int]
        self._transport: asyncio.Transport
        self._claims: memoryview
        self._buffer = bytearray()
        self._needed = 0
        self._next_id = 1
        self._revoked_until = 0

    @classmethod
    async def start(
        cls, launch: Launch, on_free: Callable[["WorkerProcess"], None], returned: Callable[[Job], None]
    ) -> Self:
        """Starts the worker; raises `LoadFailed` if the interpreter cannot be started.

        `on_free` is called when it can take more; `returned` gets jobs that were taken back from it.
        """
        try:
            started = launch.start()
        except OSError as error:
            message = f"The interpreter {launch.python} cannot be started: {error.strerror}."
            raise LoadFailed("INTERPRETER_BROKEN", message) from error
        return await cls.adopt(started, on_free, returned)

    @classmethod
    async def adopt(
        cls, started: Started, on_free: Callable[["WorkerProcess"], None], returned: Callable[[Job], None]
    ) -> Self:
        """As `start`, with a worker that runs already."""
        protocol = cls(on_free, returned)
        protocol._claims = started.claims
        protocol._process = started.process
        protocol._exit = asyncio.create_task(_exit_of(started.process))
        protocol._transport, _ = await protocol._loop.create_unix_connection(
            lambda: protocol, sock=started.socket
        )
        return protocol

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def connection_lost(self, exc: Exception | None) -> None:
        """The worker closed its end, by ending."""
        if not self.lost.done():
            self.lost.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Takes the whole frames out of what has arrived."""
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._needed:
                return
            data, self._buffer = bytes(self._buffer), bytearray()
        position, size = 0, len(data)
        while size - position >= frames.HEADER.size:
            kind, number, request_id, meta_size, payload_size = frames.HEADER.unpack_from(data, position)
            middle = position + frames.HEADER.size + meta_size
            end = middle + payload_size
            if size < end:
                self._needed = end - position
                break
            meta = data[position + frames.HEADER.size : middle]
            self._handle(Answer(kind, meta, data[middle:end], number), request_id)
            position = end
        if position < size:
            self._buffer += data[position:] if position else data

    def send(self, jobs: Sequence[Job]) -> None:
        """Hands over one job, or several as a batch."""
        now = self._loop.time()
        first_id = self._next_id
        self._next_id += len(jobs)
        if not self.parcels:
            self.busy_since = now
        self.parcels.append(_Parcel(first_id, jobs))
        self.last_batch = len(jobs)
        if len(jobs) == 1:
            job = jobs[0]
            if job.run_seconds:
                job.deadline = now + job.run_seconds
            limit = max(int((job.deadline - now) * 1000), 1)
            self._transport.write(frames.encode(job.kind, first_id, job.meta, job.payload, limit))
            return
        limit = max(int((min(job.deadline for job in jobs) - now) * 1000), 1)
        parts = [
            frames.encode(job.kind, first_id + position, job.meta, job.payload, limit)
            for position, job in enumerate(jobs)
        ]
        self._transport.write(frames.encode(frames.BATCH, first_id, b"", b"".join(parts), limit))

    def take_back(self) -> None:
        """Asks back what lies behind a `run` that takes long, so that another worker may have it."""
        if self._revoked_until or len(self.parcels) < 2:
            return
        self._revoked_until = self._next_id
        self._claims[frames.REVOKED] = self.parcels[1].first_id
        self._loop.call_later(_REVOKE_SECONDS, self._collect)

    def _collect(self) -> None:
        # What the worker has begun it answers, if only by saying that it was taken back.
        started = self._claims[frames.STARTED]
        while len(self.parcels) > 1 and self.parcels[-1].first_id > started:
            parcel = self.parcels.pop()
            for job in reversed(parcel.jobs):
                self._returned(job)

    async def ended(self) -> int:
        """Waits until the process has ended and all it sent is read; its exit code."""
        code = await asyncio.shield(self._exit)
        # A process that user code left behind may hold the socket open.
        await asyncio.wait([self.lost], timeout=1.0)
        self._transport.close()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        if not self.loaded.done():
            message = f"The worker ended while it loaded the scoring script ({how})."
            if code == -signal.SIGKILL:
                message += " The node may have run out of memory."
            self.loaded.set_exception(LoadFailed("WORKER_DIED", message))
        if self.parcels:
            self._fail_first(
                WorkerDied("WORKER_DIED", f"The scoring process ended during this request ({how}).")
            )
        # It worked on the first only: the others never reached user code.
        while self.parcels:
            for job in reversed(self.parcels.pop().jobs):
                self._returned(job)
        return code

    async def stop(self) -> None:
        """Ends the process: by closing the socket, or by force."""
        # Nobody waits for it any more: that it ends while it loads is no failure.
        self.loaded.cancel()
        self._transport.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._exit), _STOP_SECONDS)
            return
        self.kill()
        await asyncio.shield(self._exit)

    def kill(self) -> None:
        """Ends the process by force."""
        self._process.kill()

    def kill_if_at(self, job: Job) -> None:
        """Ends a `run` whose result nobody wants any more."""
        if not self.is_doomed and self.parcels and job in self.parcels[0].jobs:
            self.is_doomed = True
            self.kill()

    def kill_if_stuck(self, now: float) -> None:
        """Ends a `run` that its time-out did not interrupt: nothing but a new worker helps."""
        if not self.is_doomed and self.parcels:
            deadline = min(job.deadline for job in self.parcels[0].jobs)
            if now > deadline + KILL_AFTER_SECONDS:
                self.is_doomed = True
                self._fail_first(timed_out("The scoring script did not answer in time and was ended."))
                self.kill()

    def _fail_first(self, error: PlatformError) -> None:
        parcel = self.parcels.popleft()
        for job in parcel.jobs[parcel.answered :]:
            job.finish(error)

    def _handle(self, answer: Answer, request_id: int) -> None:
        if answer.kind in (frames.READY, frames.LOAD_FAILED):
            if self.loaded.done():
                return  # whoever waited for it has given up
            if answer.kind == frames.READY:
                self.loaded.set_result(json.loads(answer.meta))
            else:
                self.loaded.set_exception(LoadFailed(**json.loads(answer.meta)))
            return
        if self._revoked_until and request_id >= self._revoked_until - 1:
            self._end_revocation()
        parcel = self.parcels[0] if self.parcels else None
        if parcel is None or parcel.first_id + parcel.answered != request_id:
            return  # it was taken back
        job = parcel.jobs[parcel.answered]
        parcel.answered += 1
        if parcel.answered == len(parcel.jobs):
            self.parcels.popleft()
            self.has_answered = True
            now = self._loop.time()
            self.run_microseconds += ((now - self.busy_since) * 1e6 - self.run_microseconds) / 8
            self.busy_since = self.free_since = now
            self._on_free(self)
        if answer.kind == frames.SKIPPED:
            self._returned(job)
        elif answer.kind == frames.ERROR:
            job.finish(worker_error(**json.loads(answer.meta)))
        else:
            job.finish(answer)

    @property
    def takes_back(self) -> bool:
        """Whether requests are being taken back: until that is over it gets no new ones."""
        return self._revoked_until > 0

    def _end_revocation(self) -> None:
        self._revoked_until = 0
        self._claims[frames.REVOKED] = 0


async def _exit_of(process: "subprocess.Popen[bytes]") -> int:
    """Waits for the end of the process; its exit code, negative for a signal."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    descriptor = os.pidfd_open(process.pid)
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    return process.wait()
