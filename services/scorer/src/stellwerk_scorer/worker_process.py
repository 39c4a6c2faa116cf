"""One life of the worker: start it, exchange frames with it, see it end."""

import asyncio
import contextlib
import itertools
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from stellwerk_platform.errors import DeadlineExceeded, PlatformError
from stellwerk_scorer import worker
from stellwerk_scorer.domain import WorkerDied, worker_error

# The worker interrupts `run` at its time-out by itself; code that does not let it is killed this much later.
_KILL_AFTER_SECONDS = 1.0
_STOP_SECONDS = 2.0
# What the front has and user code must not get: a secret, and a setting of ours.
_HIDDEN_VARIABLES = ("STELLWERK_OTLP_KEY", "GRPC_ENABLE_FORK_SUPPORT")


@dataclass(frozen=True, slots=True)
class Result:
    """What `run` returned, as JSON, with type and shape of the arrays in it if they were asked for."""

    body: bytes
    arrays: Mapping[str, Any]


class LoadFailed(Exception):
    """The worker could not load the script: a stable reason, a sentence, and the traceback for the log."""

    def __init__(self, reason: str, message: str, details: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.details = details


class WorkerProcess(asyncio.Protocol):
    """The front's end of the socket; `loaded` and `lost` are the two events of its life."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        # True when `run` takes the request's headers; LoadFailed when the script cannot serve.
        self.loaded: asyncio.Future[bool] = loop.create_future()
        self.lost: asyncio.Future[None] = loop.create_future()
        # Set when it is about to be killed: who comes next must not be given to it.
        self.is_doomed = False
        self._process: asyncio.subprocess.Process
        self._transport: asyncio.Transport
        self._buffer = bytearray()
        self._ids = itertools.count(1)
        self._waiting: dict[int, tuple[asyncio.Future[Result], asyncio.TimerHandle]] = {}

    @classmethod
    async def start(cls, python: str, script: str) -> Self:
        """Starts the worker; raises `LoadFailed` if the interpreter cannot be started."""
        own, its = socket.socketpair()
        own.setblocking(False)
        environment = {name: value for name, value in os.environ.items() if name not in _HIDDEN_VARIABLES}
        protocol = cls()
        with its:
            try:
                protocol._process = await asyncio.create_subprocess_exec(
                    python,
                    worker.__file__,
                    str(its.fileno()),
                    script,
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=(its.fileno(),),
                    env={**environment, "PYTHONUNBUFFERED": "1"},
                )
            except OSError as error:
                own.close()
                message = f"The interpreter {python} cannot be started: {error.strerror}."
                raise LoadFailed("INTERPRETER_BROKEN", message) from error
        loop = asyncio.get_running_loop()
        protocol._transport, _ = await loop.create_unix_connection(lambda: protocol, sock=own)
        return protocol

    def connection_lost(self, exc: Exception | None) -> None:
        """The worker closed its end, by ending."""
        if not self.lost.done():
            self.lost.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Takes the whole frames out of what has arrived."""
        self._buffer += data
        position = 0
        while len(self._buffer) - position >= worker.HEADER.size:
            kind, request_id, head_size, size = worker.HEADER.unpack_from(self._buffer, position)
            head = position + worker.HEADER.size
            end = head + head_size + size
            if len(self._buffer) < end:
                break
            metadata = json.loads(self._buffer[head : head + head_size]) if head_size else {}
            self._handle(kind, request_id, metadata, bytes(self._buffer[head + head_size : end]))
            position = end
        del self._buffer[:position]

    def send(self, body: bytes, metadata: dict[str, Any], timeout_seconds: float) -> asyncio.Future[Result]:
        """Hands a request over; the future holds its result or `PlatformError`, also when the worker dies."""
        loop = asyncio.get_running_loop()
        request_id = next(self._ids)
        answer: asyncio.Future[Result] = loop.create_future()
        timer = loop.call_later(timeout_seconds + _KILL_AFTER_SECONDS, self._kill_stuck, request_id)
        self._waiting[request_id] = (answer, timer)
        metadata["timeout_seconds"] = timeout_seconds
        self._transport.write(worker.encode_frame(worker.RUN, request_id, metadata, body))
        return answer

    async def ended(self) -> int:
        """Waits until the process has ended and all it sent is read; its exit code."""
        code = await self._process.wait()
        # A process that user code left behind may hold the socket open.
        await asyncio.wait([self.lost], timeout=1.0)
        self._transport.close()
        if not self.loaded.done():
            message = f"The worker ended while it loaded the scoring script ({_how_it_ended(code)})."
            self.loaded.set_exception(LoadFailed("WORKER_DIED", message))
        died = WorkerDied(
            "WORKER_DIED", f"The scoring process ended during this request ({_how_it_ended(code)})."
        )
        for request_id in list(self._waiting):
            self._finish(request_id, died)
        return code

    async def stop(self) -> None:
        """Ends the process: by closing the socket, or by force."""
        self._transport.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), _STOP_SECONDS)
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    def _handle(self, kind: int, request_id: int, metadata: dict[str, Any], payload: bytes) -> None:
        if kind in (worker.READY, worker.LOAD_FAILED):
            if self.loaded.done():
                return  # whoever waited for it has given up
            if kind == worker.READY:
                self.loaded.set_result(metadata["wants_headers"])
            else:
                self.loaded.set_exception(LoadFailed(**metadata))
        elif kind == worker.ERROR:
            self._finish(request_id, worker_error(metadata["reason"], metadata["message"]))
        else:
            self._finish(request_id, Result(payload, metadata.get("arrays", {})))

    def _finish(self, request_id: int, outcome: Result | PlatformError) -> None:
        answer, timer = self._waiting.pop(request_id, (None, None))
        if answer is None or timer is None:
            return
        timer.cancel()
        if answer.done():
            return
        if isinstance(outcome, Result):
            answer.set_result(outcome)
        else:
            answer.set_exception(outcome)
            answer.exception()  # its client may be gone: an exception that nobody reads is no defect

    def _kill_stuck(self, request_id: int) -> None:
        """`run` did not let itself be interrupted: nothing but a new worker helps."""
        self.is_doomed = True
        self._finish(request_id, timed_out("The scoring script did not answer in time and was ended."))
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()


def timed_out(message: str) -> PlatformError:
    """The error of a request whose time is over."""
    return DeadlineExceeded(
        "SCORING_TIMEOUT", message, "Ask again later, or raise the deployment's time-out."
    )


def _how_it_ended(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
