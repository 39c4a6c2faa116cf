"""Calls of `inference.GRPCInferenceService` as HTTP requests, as the gRPC door hands them over.

One request a call, the body being the serialised message: what gRPC's own server for Python
costs a call is several times what this does. docs/contracts/open-inference.md has the rules.
"""

from collections.abc import Mapping
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from stellwerk_platform.errors import InvalidArgument, NotFound
from stellwerk_protos.open_inference import grpc_predict_v2_pb2 as pb
from stellwerk_scorer import __version__, data_plane, grpc_tensors
from stellwerk_scorer.data_plane import DataPlane
from stellwerk_scorer.domain import InferRequest, Model, Tensor

PREFIX = "/inference.GRPCInferenceService/"
M = TypeVar("M", bound=Message)
CONTENT_TYPE = b"content-type: application/proto\r\n"


def parse(model: Model, body: bytes) -> tuple[InferRequest, bool]:
    """The request for `ModelInfer`, and whether its tensors are raw."""
    message = _read(pb.ModelInferRequest, body)
    model.check(message.model_name, message.model_version)
    return grpc_tensors.parse_request(message), bool(message.raw_input_contents)


def render(model: Model, request: InferRequest, outputs: list[Tensor], is_raw: bool) -> bytes:
    """The answer of `ModelInfer`."""
    return grpc_tensors.render_response(model, request.id, outputs, raw=is_raw).SerializeToString()


def answer(plane: DataPlane, method: str, body: bytes) -> bytes:
    """The answer of the other methods; raises `PlatformError`."""
    model = plane.model
    if method == "ServerLive":
        return pb.ServerLiveResponse(live=True).SerializeToString()
    if method == "ServerReady":
        return pb.ServerReadyResponse(ready=plane.ready).SerializeToString()
    if method == "ServerMetadata":
        return server_metadata().SerializeToString()
    if method == "ModelReady":
        asked = _read(pb.ModelReadyRequest, body)
        model.check(asked.name, asked.version)
        return pb.ModelReadyResponse(ready=plane.ready).SerializeToString()
    if method == "ModelMetadata":
        named = _read(pb.ModelMetadataRequest, body)
        model.check(named.name, named.version)
        return model_metadata(plane).SerializeToString()
    raise NotFound("PATH_NOT_FOUND", f"There is no method {method[:50]}.", "Use those of the protocol.")


def server_metadata() -> pb.ServerMetadataResponse:
    """Name and version of this server."""
    return pb.ServerMetadataResponse(
        name=data_plane.SERVER_NAME, version=__version__, extensions=data_plane.EXTENSIONS
    )


def model_metadata(plane: DataPlane) -> pb.ModelMetadataResponse:
    """Name and version of the model, and its tensors where they are known."""
    versions = [plane.model.version] if plane.model.version else []
    found = pb.ModelMetadataResponse(name=plane.model.name, versions=versions)
    tensors = plane.tensors()
    found.platform = tensors["platform"]
    for field, described in ((found.inputs, tensors["inputs"]), (found.outputs, tensors["outputs"])):
        for item in described:
            field.add(name=item["name"], datatype=item["datatype"], shape=item["shape"])
    return found


def timeout_seconds(headers: Mapping[bytes, bytes]) -> float | None:
    """What is left of the caller's deadline, None if it has none."""
    text = headers.get(b"connect-timeout-ms", b"")
    if not text:
        return None
    if not text.isdigit() or len(text) > 10:
        raise InvalidArgument("INVALID_REQUEST", "connect-timeout-ms is no number of milliseconds.")
    return int(text) / 1000


def _read(kind: type[M], body: bytes) -> M:
    try:
        return kind.FromString(body)
    except DecodeError:
        raise InvalidArgument(
            "INVALID_REQUEST", "The body is not the serialised message that the method takes."
        ) from None
