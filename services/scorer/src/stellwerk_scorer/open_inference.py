"""The Open Inference Protocol over REST: bytes of a request to tensors, tensors to bytes. Pure.

With the header `Inference-Header-Content-Length` the JSON is only the first part of the
body, and tensors whose parameters give a `binary_data_size` follow it as raw bytes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from stellwerk_platform.errors import InvalidArgument
from stellwerk_scorer import tensors
from stellwerk_scorer.domain import InferRequest, Model, ScriptFailed, Tensor

JSON_LENGTH_HEADER = b"inference-header-content-length"


@dataclass(frozen=True, slots=True)
class RestRequest:
    """A request, and which of its outputs the client wants as binary parts."""

    infer: InferRequest
    binary_outputs: frozenset[str]
    all_binary: bool

    def wants_binary(self, name: str) -> bool:
        """Whether this output leaves as raw bytes."""
        return name in self.binary_outputs or (self.all_binary and name not in self.infer.outputs)


def parse_request(body: bytes, json_length: str | None) -> RestRequest:
    """Reads a request; raises `InvalidArgument` that names the field which is wrong."""
    size = _json_size(body, json_length)
    try:
        document = orjson.loads(body if size == len(body) else memoryview(body)[:size])
    except orjson.JSONDecodeError:
        raise InvalidArgument(
            "INVALID_JSON", "The body is not valid JSON.", "Send an Open Inference request in JSON."
        ) from None
    if not isinstance(document, dict):
        raise _invalid("the body must be a JSON object")
    binary = memoryview(body)[size:]
    inputs = []
    for item in _objects(document, "inputs"):
        tensor, binary = _input(item, binary)
        inputs.append(tensor)
    if binary:
        raise _invalid(f"{len(binary)} bytes of the body belong to no input")
    requested = list(_objects(document, "outputs"))
    infer = InferRequest(
        id=_text(document, "id", ""),
        inputs=tuple(inputs),
        outputs=tuple(_text(item, "name") for item in requested),
    )
    in_binary = frozenset(item["name"] for item in requested if _parameters(item).get("binary_data") is True)
    return RestRequest(infer, in_binary, _parameters(document).get("binary_data_output") is True)


def render_response(
    request: RestRequest, model: Model, outputs: Sequence[Tensor], request_id: str
) -> tuple[bytes, int | None]:
    """The body, and the length of its JSON part if binary parts follow. Raises `ScriptFailed`.

    `request_id` is the answer's id where the client gave none: the protocol wants one there.
    """
    document: dict[str, Any] = {"model_name": model.name}
    if model.version:
        document["model_version"] = model.version
    document["id"] = request.infer.id or request_id
    parts: list[bytes] = []
    document["outputs"] = [_output(request, tensor, parts) for tensor in outputs]
    text = orjson.dumps(document)
    return b"".join([text, *parts]), len(text) if parts else None


def _json_size(body: bytes, json_length: str | None) -> int:
    if json_length is None:
        return len(body)
    if not json_length.isdecimal() or int(json_length) > len(body):
        raise _invalid(
            f"the header {JSON_LENGTH_HEADER.decode()} is {json_length!r}, the body has {len(body)} bytes"
        )
    return int(json_length)


def _input(item: dict[str, Any], binary: memoryview) -> tuple[Tensor, memoryview]:
    name, datatype = _text(item, "name"), _text(item, "datatype")
    shape = item.get("shape")
    size = _parameters(item).get("binary_data_size")
    try:
        if not isinstance(shape, list):
            raise tensors.TensorError("it has no shape")
        if size is None:
            if item.get("data") is None:
                raise tensors.TensorError("it has no data")
            return Tensor(
                name, datatype, tuple(shape), tensors.flatten(item["data"], shape, datatype)
            ), binary
        if type(size) is not int or not 0 <= size <= len(binary):
            raise tensors.TensorError(f"its binary_data_size is {size!r}, {len(binary)} bytes are left")
        raw = bytes(binary[:size])
        tensors.check_raw(raw, shape, datatype)
        return Tensor(name, datatype, tuple(shape), raw=raw), binary[size:]
    except tensors.TensorError as error:
        raise InvalidArgument("INVALID_TENSOR", f"The input {name!r} is wrong: {error}.") from None


def _output(request: RestRequest, tensor: Tensor, parts: list[bytes]) -> dict[str, Any]:
    document: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
    if request.wants_binary(tensor.name):
        raw = tensor.as_raw()
        parts.append(raw)
        document["parameters"] = {"binary_data_size": len(raw)}
        return document
    values = tensor.as_values()
    if tensor.datatype == "BF16" or not tensors.is_finite(values, tensor.datatype):
        what = "BF16" if tensor.datatype == "BF16" else "NaN or an infinity"
        raise ScriptFailed(
            "RESULT_NOT_JSON",
            f"run() returned {what} for the output {tensor.name!r}, which JSON does not have.",
            "Ask for binary outputs, use gRPC, or have the script replace such values.",
        )
    document["data"] = values
    return document


def _objects(document: dict[str, Any], field: str) -> Iterator[dict[str, Any]]:
    items = document.get(field)
    if items is None:
        return
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise _invalid(f"{field} must be a list of objects")
    yield from items


def _text(document: dict[str, Any], field: str, default: str | None = None) -> str:
    value = document.get(field)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise _invalid(f"{field} must be a text")
    return value


def _parameters(document: dict[str, Any]) -> dict[str, Any]:
    value = document.get("parameters")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _invalid("parameters must be an object")
    return value


def _invalid(problem: str) -> InvalidArgument:
    return InvalidArgument("INVALID_REQUEST", f"This is no Open Inference request: {problem}.")
