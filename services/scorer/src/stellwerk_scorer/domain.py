"""What the scorer knows: tensors, how a request becomes the argument of `run`, and back. No I/O."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

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
# What the worker of a batch deployment says of its tensors.
NO_TENSORS = "none"


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


class ScriptTimedOut(DeadlineExceeded):
    """`run` took too long; over HTTP the status that Azure's server gives it."""

    http_status = 500


_CLIENT_CURES = {
    "INVALID_UTF8": "Send text in UTF-8.",
    "INVALID_JSON": "Send JSON of the form that the scoring script reads.",
    "PARAMETER_MISSING": "Send a JSON object with all parameters; /swagger.json describes them.",
    "INVALID_INPUT": "Send what /swagger.json or the model's metadata describes.",
    "INVALID_REQUEST": "Name the inputs as the scoring script does.",
    "OUTPUT_NOT_FOUND": "Ask for outputs that the model has.",
}
_LOG_CURE = "The log of the deployment has the details: `stellwerk deployment logs ENDPOINT DEPLOYMENT`."


@dataclass(slots=True)
class Tensor:
    """A tensor with its values flat and row-major, as Python values, raw bytes, or both.

    BYTES values are `str`. BF16 has no values that JSON could carry: only raw bytes.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: Sequence[Any] | None = None
    raw: bytes | None = None

    def as_values(self) -> Sequence[Any]:
        """The values; raises `TensorError` for raw bytes that are none."""
        if self.values is None:
            self.values = tensors.decode_raw(self.raw or b"", self.shape, self.datatype)
        return self.values

    def as_raw(self) -> bytes:
        """The little-endian bytes; raises `TensorError` for values that do not fit."""
        if self.raw is None:
            self.raw = tensors.encode_raw(self.values or (), self.datatype)
        return self.raw


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
    if reason == "SCORING_TIMEOUT":
        return timed_out(message)
    if reason in _CLIENT_CURES:
        return InvalidArgument(reason, message, _CLIENT_CURES[reason])
    return ScriptFailed(reason, message, _LOG_CURE)


def timed_out(message: str) -> PlatformError:
    """The error of a request for which `run` took too long."""
    return ScriptTimedOut(
        "SCORING_TIMEOUT", message, "Send less at a time, or raise the deployment's time-out."
    )


def only_mini_batches() -> PlatformError:
    """The error of a request to a batch deployment."""
    return NotFound(
        "ENDPOINT_IS_BATCH",
        "This is the replica of a batch endpoint, which answers no requests.",
        "Score a dataset: `stellwerk batch submit ENDPOINT DATASET`.",
    )


def check_inputs(inputs: Sequence[Tensor]) -> None:
    """Raises `InvalidArgument` unless there are inputs, each with a name of its own."""
    if not inputs:
        raise InvalidArgument(
            "INPUTS_MISSING", "The request has no inputs.", "Give at least one input tensor."
        )
    if len(inputs) > 1 and len({tensor.name for tensor in inputs}) < len(inputs):
        raise InvalidArgument(
            "INPUT_TWICE", "Two inputs have the same name.", "Give each input its own name."
        )


def as_text(inputs: Sequence[Tensor], *, named: bool) -> bytes:
    """The JSON text that `run` gets: an only input is called `data` unless `named`."""
    document = {
        ONLY_INPUT if len(inputs) == 1 and not named else tensor.name: tensors.nest(
            tensor.as_values(), tensor.shape
        )
        for tensor in inputs
    }
    # orjson writes null for what is no number; Python's own reader takes NaN and Infinity.
    if all(tensors.is_finite(tensor.values or (), tensor.datatype) for tensor in inputs):
        return orjson.dumps(document)
    return json.dumps(document, separators=(",", ":")).encode()


def as_binary(inputs: Sequence[Tensor], outputs: Sequence[str]) -> tuple[bytes, bytes]:
    """Description and raw bytes of the tensors, for a worker that makes arrays of them."""
    raws = [tensor.as_raw() for tensor in inputs]
    described = [
        (tensor.name, tensor.datatype, tensor.shape, len(raw))
        for tensor, raw in zip(inputs, raws, strict=True)
    ]
    return orjson.dumps({"inputs": described, "outputs": outputs}), b"".join(raws)


def outputs_of_tensors(meta: bytes, payload: bytes, requested: Sequence[str]) -> list[Tensor]:
    """The outputs that the worker sent as raw bytes."""
    outputs, position = [], 0
    for name, datatype, shape, size in orjson.loads(meta):
        raw = payload[position : position + size]
        outputs.append(Tensor(name or DEFAULT_OUTPUT, datatype, tuple(shape), raw=raw))
        position += size
    return _select(outputs, requested)


def outputs_of(result: bytes, arrays: Mapping[str, Any], requested: Sequence[str]) -> list[Tensor]:
    """The tensors that a result in JSON stands for; `arrays` has type and shape of what were arrays."""
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
