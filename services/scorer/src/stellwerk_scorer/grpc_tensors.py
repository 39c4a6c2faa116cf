"""The Open Inference Protocol over gRPC: messages to tensors, tensors to messages. Pure."""

from collections.abc import Sequence
from typing import Any

from stellwerk_platform.errors import InvalidArgument
from stellwerk_protos.open_inference import grpc_predict_v2_pb2 as pb
from stellwerk_scorer import tensors
from stellwerk_scorer.domain import InferRequest, Model, Tensor

# datatype -> field of InferTensorContents; FP16 and BF16 have none and travel raw only.
_FIELDS = {
    "BOOL": "bool_contents",
    **{f"INT{bits}": "int_contents" for bits in (8, 16, 32)},
    "INT64": "int64_contents",
    **{f"UINT{bits}": "uint_contents" for bits in (8, 16, 32)},
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def parse_request(message: pb.ModelInferRequest) -> InferRequest:
    """Reads a request; raises `InvalidArgument` that names the input which is wrong."""
    raws: Sequence[bytes] = message.raw_input_contents
    if raws and len(raws) != len(message.inputs):
        raise InvalidArgument(
            "INVALID_REQUEST",
            f"There are {len(raws)} raw_input_contents for {len(message.inputs)} inputs.",
            "Send all tensors raw, or none.",
        )
    inputs = [
        _input(tensor, raws[position] if raws else None) for position, tensor in enumerate(message.inputs)
    ]
    return InferRequest(message.id, tuple(inputs), tuple(output.name for output in message.outputs))


def render_response(
    model: Model, request_id: str, outputs: Sequence[Tensor], *, raw: bool
) -> pb.ModelInferResponse:
    """The answer, raw if asked or if a tensor has no typed field. Raises `ScriptFailed`."""
    raw = raw or any(tensor.datatype not in _FIELDS for tensor in outputs)
    response = pb.ModelInferResponse(model_name=model.name, model_version=model.version, id=request_id)
    for tensor in outputs:
        message = response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        if raw:
            response.raw_output_contents.append(tensor.as_raw())
        else:
            getattr(message.contents, _FIELDS[tensor.datatype]).extend(_typed(tensor))
    return response


def _input(message: pb.ModelInferRequest.InferInputTensor, raw: bytes | None) -> Tensor:
    shape = tuple(message.shape)
    try:
        if raw is None:
            return Tensor(message.name, message.datatype, shape, _values(message, shape))
        tensors.check_raw(raw, shape, message.datatype)
    except tensors.TensorError as error:
        raise InvalidArgument("INVALID_TENSOR", f"The input {message.name!r} is wrong: {error}.") from None
    if message.HasField("contents"):
        raise InvalidArgument(
            "INVALID_REQUEST",
            f"The input {message.name!r} has both typed and raw contents.",
            "Send one of them.",
        )
    return Tensor(message.name, message.datatype, shape, raw=raw)


def _values(message: pb.ModelInferRequest.InferInputTensor, shape: tuple[int, ...]) -> list[Any]:
    tensors.check_datatype(message.datatype)
    field = _FIELDS.get(message.datatype)
    if field is None:
        raise tensors.TensorError(f"{message.datatype} has no typed contents; send it raw")
    filled = [descriptor.name for descriptor, _value in message.contents.ListFields()]
    if filled not in ([], [field]):
        raise tensors.TensorError(f"{message.datatype} belongs into {field}, not {', '.join(filled)}")
    values: list[Any] = list(getattr(message.contents, field))
    if field == "bytes_contents":
        values = tensors.texts(values)
    return tensors.flatten(values, shape, message.datatype)


def _typed(tensor: Tensor) -> Sequence[Any]:
    if tensor.datatype == "BYTES":
        return [value.encode() for value in tensor.as_values()]
    return tensor.as_values()
