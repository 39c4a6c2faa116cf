"""The life of the worker: load the script, answer frames until the front closes the socket."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import mmap
import os
import resource
import signal
import socket
import sys
from types import FrameType

from . import frames
from .loading import LoadError, TimeUp
from .service import Answers, load

_PR_SET_PDEATHSIG = 1
_CHUNK_BYTES = 1 << 18
# When the kernel runs out of memory it ends the worker, not the front.
_OOM_SCORE = "1000"


def main() -> int:
    """Arguments: socket, shared memory (both inherited), and the settings as JSON."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(connection.fileno(), False)
    claims = memoryview(mmap.mmap(int(sys.argv[2]), frames.CLAIMS.size)).cast("Q")
    settings = json.loads(sys.argv[3])
    _prepare(settings)
    try:
        if settings["debug_port"]:
            from .debugging import wait_for_debugger

            wait_for_debugger(settings["debug_port"])
        service = load(settings)
    except LoadError as error:
        details = {"reason": error.reason, "message": error.message, "details": error.details}
        connection.sendall(frames.encode(frames.LOAD_FAILED, 0, json.dumps(details).encode()))
        return frames.EXIT_LOAD_FAILED
    faulthandler.cancel_dump_traceback_later()
    signal.setitimer(signal.ITIMER_REAL, 0)
    connection.sendall(frames.encode(frames.READY, 0, json.dumps(service.description).encode()))
    serve(connection, service, claims)
    return 0


def _prepare(settings: dict[str, int]) -> None:
    """What holds for all user code: ends with the front, its signals, its limits."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(_OOM_SCORE)
    # The front ends this process by closing the socket, after it has drained. Handlers, not SIG_IGN,
    # because programs that the script starts would inherit that.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _signal, _frame: None)
    # A `multiprocessing.Pool` of the script ends its processes by SIGTERM, and waits for that.
    os.register_at_fork(after_in_child=_end_by_signals)
    signal.signal(signal.SIGALRM, _raise_time_up)
    if settings["memory_bytes"]:
        # Private memory, not address space: libraries reserve much more of that than they use.
        resource.setrlimit(resource.RLIMIT_DATA, (settings["memory_bytes"],) * 2)
    seconds = settings["init_timeout_seconds"]
    signal.setitimer(signal.ITIMER_REAL, seconds)
    # Shows where code is stuck that no exception reaches.
    faulthandler.dump_traceback_later(seconds + 1)


def _end_by_signals() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _raise_time_up(_signal: int, _frame: FrameType | None) -> None:
    raise TimeUp


def serve(connection: socket.socket, service: Answers, claims: memoryview) -> None:
    """Answers frames, one after the other, in the main thread, where user code expects to run."""
    reader = Reader(connection)
    skipped = frames.SKIPPED
    while True:
        frame = reader.next()
        if frame is None:
            return
        kind, number, request_id, meta, payload = frame
        claims[frames.STARTED] = request_id
        if claims[frames.REVOKED] == request_id:
            connection.sendall(frames.encode(skipped, request_id))
        else:
            connection.sendall(service.answer(kind, number, request_id, meta, payload))


class Reader:
    """Takes whole frames out of the socket; several may arrive in one read."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = b""
        self._position = 0

    def next(self) -> tuple[int, int, int, bytes, bytes] | None:
        """Kind, number, id, metadata and payload of the next frame; None when the front is gone."""
        head = self._take(frames.HEADER.size)
        if head is None:
            return None
        kind, number, request_id, meta_size, size = frames.HEADER.unpack(head)
        meta = self._take(meta_size) if meta_size else b""
        payload = self._take(size) if size else b""
        if meta is None or payload is None:
            return None
        return kind, number, request_id, meta, payload

    def _take(self, size: int) -> bytes | None:
        end = self._position + size
        if end <= len(self._buffer):
            taken = self._buffer[self._position : end]
            self._position = end
            return taken
        rest = self._buffer[self._position :]
        self._buffer, self._position = b"", 0
        if size > _CHUNK_BYTES:
            return self._exactly(rest, size)
        while len(rest) < size:
            chunk = self._connection.recv(_CHUNK_BYTES)
            if not chunk:
                return None
            rest = rest + chunk if rest else chunk
        self._buffer, self._position = rest, size
        return rest[:size]

    def _exactly(self, rest: bytes, size: int) -> bytes | None:
        buffer = bytearray(size)
        buffer[: len(rest)] = rest
        view, received = memoryview(buffer), len(rest)
        while received < size:
            count = self._connection.recv_into(view[received:])
            if count == 0:
                return None
            received += count
        return bytes(buffer)
