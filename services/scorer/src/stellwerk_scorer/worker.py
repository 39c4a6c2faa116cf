"""Runs the user's scoring script; the only process of a replica that loads user code.

It runs under the interpreter of the user's environment, which has none of our packages,
so this file imports the standard library only and is started by its path. The front
process imports it too, for the frame format that both ends must spell alike.

A frame is a header, metadata (a JSON object, or nothing) and a payload. Requests carry
an id that the answer repeats, so that the front may have several under way; they are
answered one after the other, in the main thread, where user code expects to run.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    # Python put this file's folder here, whose `http.py` would hide the standard library's.
    del sys.path[0]

import contextlib
import ctypes
import importlib.util
import inspect
import json
import os
import signal
import socket
import struct
import traceback
from collections.abc import Callable, Iterator
from types import CodeType, FrameType, ModuleType, TracebackType
from typing import Any

# kind, request id, size of the metadata, size of the payload
HEADER = struct.Struct("!BQII")
READY, LOAD_FAILED, RUN, RESULT, ERROR = range(1, 6)
EXIT_LOAD_FAILED = 3

_MAX_PAYLOAD_BYTES = 2**32 - 1
_MODEL_TREE_LINES = 200
_PR_SET_PDEATHSIG = 1
# What `run` raises when its input is not what it expects; a fault of the caller if the body is not JSON.
_INPUT_ERRORS = (ValueError, KeyError, TypeError, RecursionError)


class LoadError(Exception):
    """The script cannot serve: the reason, and a sentence that tells the author what to change."""

    def __init__(self, reason: str, message: str, details: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.details = details


class _TimeUp(BaseException):
    """Raised by the timer inside `run`; no Exception, so that user code does not swallow it."""


def encode_frame(kind: int, request_id: int, metadata: dict[str, Any] | None, payload: bytes = b"") -> bytes:
    """One frame as it goes over the socket."""
    head = json.dumps(metadata).encode() if metadata else b""
    return HEADER.pack(kind, request_id, len(head), len(payload)) + head + payload


def main() -> int:
    """Loads the script, then answers frames until the front closes the socket."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(connection.fileno(), False)
    _die_with_parent()
    # The front ends this process by closing the socket, after it has drained. Handlers, not SIG_IGN,
    # because programs that the script starts would inherit that.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _signal, _frame: None)
    signal.signal(signal.SIGALRM, _raise_time_up)
    try:
        script = Script(sys.argv[2])
    except LoadError as error:
        metadata = {"reason": error.reason, "message": error.message, "details": error.details}
        connection.sendall(encode_frame(LOAD_FAILED, 0, metadata))
        return EXIT_LOAD_FAILED
    connection.sendall(encode_frame(READY, 0, {"wants_headers": script.wants_headers}))
    _serve(connection, script)
    return 0


def _serve(connection: socket.socket, script: Script) -> None:
    while True:
        header = _receive(connection, HEADER.size)
        if header is None:
            return
        _kind, request_id, metadata_size, payload_size = HEADER.unpack(header)
        metadata = _receive(connection, metadata_size)
        payload = _receive(connection, payload_size)
        if metadata is None or payload is None:
            return
        connection.sendall(script.answer(request_id, json.loads(metadata), payload))


def _receive(connection: socket.socket, size: int) -> bytes | None:
    """Exactly `size` bytes, or None when the front is gone."""
    if size == 0:
        return b""
    buffer = bytearray(size)
    view, received = memoryview(buffer), 0
    while received < size:
        count = connection.recv_into(view[received:])
        if count == 0:
            return None
        received += count
    return bytes(buffer)


class Script:
    """The loaded scoring script; raises `LoadError` when it is no scoring script or `init()` fails."""

    def __init__(self, path: str) -> None:
        module = _load_module(path)
        init: Callable[[], None] = _function(module, "init", path)
        self._run: Callable[..., Any] = _function(module, "run", path)
        self.wants_headers = _check_signature(self._run)
        _call_init(init)

    def answer(self, request_id: int, request: dict[str, Any], payload: bytes) -> bytes:
        """The frame that answers one request; never raises for what user code does."""
        try:
            text = payload.decode()
        except UnicodeDecodeError:
            return _error(request_id, "INVALID_UTF8", "The body is not UTF-8 text.")
        arguments = {"request_headers": request.get("headers", {})} if self.wants_headers else {}
        try:
            signal.setitimer(signal.ITIMER_REAL, request["timeout_seconds"])
            try:
                value = self._run(text, **arguments)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except _TimeUp as error:
            _log_exception(f"run() did not end in time (request {request_id})", error)
            return _error(request_id, "SCORING_TIMEOUT", "The scoring script did not answer in time.")
        except BaseException as error:  # SystemExit included: user code must not end the worker this way
            _log_exception(f"run() failed (request {request_id})", error)
            if isinstance(error, _INPUT_ERRORS) and not _is_json(text):
                return _error(request_id, "INVALID_JSON", "The body is not valid JSON.")
            return _error(request_id, "SCRIPT_ERROR", f"The scoring script raised {type(error).__name__}.")
        return _result(request_id, value, bool(request.get("tensors")))


def _result(request_id: int, value: Any, tensors: bool) -> bytes:
    try:
        # NaN is no JSON, but a tensor may hold it and gRPC can carry it: there the front decides.
        payload = (_TENSOR_ENCODER if tensors else _ENCODER).encode(value).encode()
        metadata = {"arrays": _describe_arrays(value)} if tensors else None
        if len(payload) > _MAX_PAYLOAD_BYTES:
            raise ValueError("it is larger than 4 GiB")
    except Exception as error:
        _log_exception(f"run() returned what is no JSON (request {request_id})", error)
        message = f"run() returned a {type(value).__name__} that cannot be sent as JSON: {error}"
        return _error(request_id, "RESULT_NOT_JSON", message)
    return encode_frame(RESULT, request_id, metadata, payload)


def _error(request_id: int, reason: str, message: str) -> bytes:
    return encode_frame(ERROR, request_id, {"reason": reason, "message": message})


def _plain(value: Any) -> Any:
    """What stands for a numpy array or scalar, or whatever looks like one, in JSON."""
    for name in ("tolist", "item"):
        convert = getattr(value, name, None)
        if callable(convert):
            return convert()
    raise TypeError(f"a {type(value).__name__} is not JSON serializable")


_ENCODER = json.JSONEncoder(default=_plain, allow_nan=False, separators=(",", ":"))
_TENSOR_ENCODER = json.JSONEncoder(default=_plain, separators=(",", ":"))


def _describe_arrays(value: Any) -> dict[str, list[Any]]:
    """Type and shape of the arrays in a result, which JSON cannot tell; "" names the result itself."""
    items = value.items() if isinstance(value, dict) else [("", value)]
    return {
        str(name): [str(item.dtype), [int(size) for size in item.shape]]
        for name, item in items
        if hasattr(item, "dtype") and hasattr(item, "shape")
    }


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _load_module(path: str) -> ModuleType:
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    spec = importlib.util.spec_from_file_location("entry_module", path)
    if spec is None or spec.loader is None:
        raise LoadError("SCRIPT_NOT_FOUND", f"{path} is no Python file.")
    module = importlib.util.module_from_spec(spec)
    # Registered before it runs, as an import would, for dataclasses and pickle look there.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except FileNotFoundError as error:
        if error.filename == path:
            raise LoadError("SCRIPT_NOT_FOUND", f"There is no scoring script {path}.") from None
        raise _load_error(error, "SCRIPT_IMPORT_FAILED", "while it was imported") from None
    except SyntaxError as error:
        place = f"{error.filename} line {error.lineno}"
        raise LoadError(
            "SCRIPT_SYNTAX_ERROR", f"The scoring script cannot be read: {error.msg} ({place}).", _trace(error)
        ) from None
    except BaseException as error:
        raise _load_error(error, "SCRIPT_IMPORT_FAILED", "while it was imported") from None
    return module


def _function(module: ModuleType, name: str, path: str) -> Callable[..., Any]:
    function = getattr(module, name, None)
    if not callable(function):
        message = f"The scoring script {os.path.basename(path)} defines no function {name}()."
        raise LoadError(f"{name.upper()}_MISSING", message)
    return function  # type: ignore[no-any-return]


def _check_signature(run: Callable[..., Any]) -> bool:
    """Whether `run` wants the request's headers; raises `LoadError` if it cannot be called with a body."""
    parameters = list(inspect.signature(run).parameters.values())
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    if any(parameter.kind not in kinds for parameter in parameters):
        raise LoadError(
            "RUN_SIGNATURE_INVALID", "run() may not have positional-only parameters, *args or **kwargs."
        )
    data = [parameter for parameter in parameters if parameter.name != "request_headers"]
    if not data or data[0].kind is inspect.Parameter.KEYWORD_ONLY:
        raise LoadError("RUN_SIGNATURE_INVALID", "run() needs a parameter that receives the request's body.")
    required = [parameter.name for parameter in data[1:] if parameter.default is inspect.Parameter.empty]
    if required:
        message = f"run() is called with the body only, but also requires {', '.join(required)}."
        raise LoadError("RUN_SIGNATURE_INVALID", message)
    return len(data) < len(parameters)


def _call_init(init: Callable[[], None]) -> None:
    try:
        init()
    except BaseException as error:
        problem = _load_error(error, "INIT_FAILED", "in init()")
        problem.details += "".join(f"{line}\n" for line in _model_tree())
        raise problem from None


def _load_error(error: BaseException, reason: str, when: str) -> LoadError:
    if isinstance(error, ModuleNotFoundError):
        message = f"The scoring script needs the module {error.name!r}, which the environment does not have."
        return LoadError("MODULE_NOT_FOUND", message, _trace(error))
    text = traceback.format_exception_only(type(error), error)[-1].strip()
    return LoadError(reason, f"The scoring script failed {when}: {text}", _trace(error))


def _model_tree() -> Iterator[str]:
    """The files that `init()` could have loaded: the usual cause of its failure is a wrong path."""
    root = os.environ.get("AZUREML_MODEL_DIR", "")
    yield f"AZUREML_MODEL_DIR={root}"
    count = 0
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(files):
            if count == _MODEL_TREE_LINES:
                yield "  ..."
                return
            count += 1
            yield f"  {os.path.relpath(os.path.join(folder, name), root)}"


def _trace(error: BaseException) -> str:
    """The traceback without the frames of this file and of the import machinery."""
    own: CodeType = _trace.__code__
    frames: TracebackType | None = error.__traceback__
    while frames is not None and (
        frames.tb_frame.f_code.co_filename == own.co_filename
        or frames.tb_frame.f_code.co_filename.startswith("<frozen importlib")
    ):
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error.with_traceback(frames), frames))


def _log_exception(what: str, error: BaseException) -> None:
    print(f"stellwerk-scorer: {what}\n{_trace(error)}", file=sys.stderr, end="", flush=True)


def _raise_time_up(_signal: int, _frame: FrameType | None) -> None:
    raise _TimeUp


def _die_with_parent() -> None:
    """Asks Linux to end this process with the front, also while user code runs."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
