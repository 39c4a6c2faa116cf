"""What the scorer knows: tensors, how a request becomes the argument of `run`, and back. No I/O."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stellwerk_platform.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NotFound,
    PlatformError,
    Unavailable,
    Unimplemented,
)
from stellwerk_scorer import tensors

# The tensor that a result without names becomes.
DEFAULT_OUTPUT = "output-0"
# The name under which the only input of a request reaches `run`.
ONLY_INPUT = "data"
MAX_REQUEST_ID_LENGTH = 100


class WorkerDied(Unavailable):
    """The worker ended while it had the request; whether `run` had effects is not known."""

    http_status = 502


class PayloadTooLarge(InvalidArgument):
    """The body is over the limit."""

    http_status = 413


class UnsupportedMediaType(InvalidArgument):
    """The body is encoded in a way that the scorer does not read."""

    http_status = 415


class RequestIdTooLong(InvalidArgument):
    """The request id would not fit into logs and headers."""

    http_status = 431


class MethodNotAllowed(Unimplemented):
    """The path exists, but not with this HTTP method."""

    http_status = 405


class ScriptFailed(Internal):
    """User code failed; its log has the details, the caller only this."""


# What the worker reports about one request, by reason, and what helps; all else is a fault of the script.
_WORKER_ERRORS: dict[str, tuple[type[PlatformError], str]] = {
    "INVALID_UTF8": (InvalidArgument, "Send text in UTF-8."),
    "INVALID_JSON": (InvalidArgument, "Send JSON of the form that the scoring script reads."),
    "SCORING_TIMEOUT": (DeadlineExceeded, "Send less at a time, or make the scoring script faster."),
}
_SCRIPT_ERROR = (
    ScriptFailed,
    "The agent's log on the replica's node has the details: `stellwerk logs agent`.",
)


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor with its values flat and row-major; BYTES values are `str` in, `str` out."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: Sequence[Any]


@dataclass(frozen=True, slots=True)
class InferRequest:
    """An Open Inference request; without `outputs` all are wanted."""

    id: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Model:
    """What this replica serves; the version is "" when the deployment has no registered model."""

    name: str
    version: str

    def check(self, name: str, version: str = "") -> None:
        """Raises `NotFound` unless the caller means this model."""
        if name != self.name or (version and version != self.version):
            asked = f"{name} version {version}" if version else name
            served = f"{self.name} version {self.version}" if self.version else self.name
            raise NotFound(
                "MODEL_NOT_FOUND", f"This deployment does not serve {asked}.", f"It serves {served}."
            )


def worker_error(reason: str, message: str) -> PlatformError:
    """The error for a reason that the worker gave."""
    kind, cure = _WORKER_ERRORS.get(reason, _SCRIPT_ERROR)
    return kind(reason, message, cure)


def run_argument(inputs: Sequence[Tensor]) -> bytes:
    """The text that `run` gets for an Open Inference request."""
    if not inputs:
        raise InvalidArgument(
            "INPUTS_MISSING", "The request has no inputs.", "Give at least one input tensor."
        )
    names = [ONLY_INPUT] if len(inputs) == 1 else [tensor.name for tensor in inputs]
    if len(set(names)) < len(names):
        raise InvalidArgument(
            "INPUT_TWICE", "Two inputs have the same name.", "Give each input its own name."
        )
    data = {
        name: tensors.nest(tensor.values, tensor.shape) for name, tensor in zip(names, inputs, strict=True)
    }
    return json.dumps(data, separators=(",", ":")).encode()


def outputs_of(result: bytes, arrays: Mapping[str, Any], requested: Sequence[str]) -> list[Tensor]:
    """The tensors that a result of `run` stands for; `arrays` has type and shape of what were arrays."""
    value = json.loads(result)
    if isinstance(value, str):
        value = _parse_text(value)
    if isinstance(value, dict):
        outputs = [_output(name, item, arrays.get(name)) for name, item in value.items()]
    else:
        outputs = [_output(DEFAULT_OUTPUT, value, arrays.get(""))]
    return _select(outputs, requested)


def _parse_text(text: str) -> Any:
    """Many scripts return `json.dumps(...)`; a text that is no list or mapping stands for itself."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, list | dict) else text


def _output(name: str, value: Any, array: Any) -> Tensor:
    try:
        if array is not None:
            datatype = tensors.datatype_of_array(array[0])
            if datatype is not None:
                shape = tuple(array[1])
                return Tensor(name, datatype, shape, tensors.flatten(value, shape, datatype))
        shape, values = tensors.measure(value)
        datatype = tensors.guess_datatype(values)
        return Tensor(name, datatype, shape, tensors.convert(values, datatype))
    except tensors.TensorError as error:
        raise ScriptFailed(
            "RESULT_NOT_TENSOR",
            f"run() returned what is no tensor for the output {name!r}: {error}",
            "Return a list or array, or a mapping of them, of numbers, booleans or texts.",
        ) from None


def _select(outputs: list[Tensor], requested: Sequence[str]) -> list[Tensor]:
    if not requested:
        return outputs
    by_name = {tensor.name: tensor for tensor in outputs}
    missing = [name for name in requested if name not in by_name]
    if missing:
        raise InvalidArgument(
            "OUTPUT_NOT_FOUND",
            f"There is no output {', '.join(missing)}.",
            f"The script returns {', '.join(by_name) or 'none'}.",
        )
    return [by_name[name] for name in requested]
