"""The gRPC face: the Open Inference Protocol, health and reflection.

Not the platform's server, for that has one permission per service and reports SERVING
as soon as it listens; here liveness is open, and health follows the worker.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn, TypeAlias

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status
from opentelemetry.trace import SpanKind, StatusCode

from stellwerk_platform import telemetry
from stellwerk_platform.errors import PlatformError, to_status
from stellwerk_protos.open_inference import grpc_predict_v2_pb2 as pb
from stellwerk_protos.open_inference import grpc_predict_v2_pb2_grpc as pb_grpc
from stellwerk_scorer import errors, grpc_tensors, proto_calls
from stellwerk_scorer.auth import Gate
from stellwerk_scorer.certificate import Certificate
from stellwerk_scorer.data_plane import DataPlane

_SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_OPEN = {
    f"/{_SERVICE}/ServerLive",
    f"/{_SERVICE}/ServerReady",
    *(f"/{_HEALTH}/{rpc}" for rpc in ("Check", "Watch")),
}
# Room for the envelope around a body of the permitted size.
_ENVELOPE_BYTES = 1 << 20

# In quotes, for at run time grpc's classes take no type arguments.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class GrpcServer:
    """The server with its health; `set_ready` is told whenever the worker comes or goes."""

    def __init__(
        self,
        listen: str,
        plane: DataPlane,
        gate: Gate,
        max_body_bytes: int,
        certificate: Certificate | None = None,
    ) -> None:
        limit = max_body_bytes + _ENVELOPE_BYTES
        options = [
            ("grpc.max_receive_message_length", limit),
            ("grpc.max_send_message_length", limit),
            ("grpc.so_reuseport", 0),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
        ]
        self._server = grpc.aio.server(options=options, interceptors=[_Guard(gate)])
        pb_grpc.add_GRPCInferenceServiceServicer_to_server(InferenceService(plane), self._server)
        self._health = health_aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection([_SERVICE, _HEALTH, reflection.SERVICE_NAME], self._server)
        if certificate is None:
            self.port = self._server.add_insecure_port(listen)
        else:
            self.port = self._server.add_secure_port(listen, certificate.of_grpc())

    async def start(self) -> None:
        """Starts to answer; not ready yet."""
        await self.set_ready(False)
        await self._server.start()

    async def set_ready(self, ready: bool) -> None:
        """Sets what the health service tells."""
        status = (
            health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for name in ("", _SERVICE):
            await self._health.set(name, status)

    async def stop(self, drain_seconds: float) -> None:
        """Reports NOT_SERVING, lets running calls end, then stops."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(drain_seconds)


class InferenceService(pb_grpc.GRPCInferenceServiceServicer):
    """`inference.GRPCInferenceService` over the data plane."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        """The process answers."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        """The worker can take requests."""
        return pb.ServerReadyResponse(ready=self._plane.ready)

    async def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: Context
    ) -> pb.ServerMetadataResponse:
        """Name and version of this server."""
        return proto_calls.server_metadata()

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        """The model can take requests."""
        try:
            self._plane.model.check(request.name, request.version)
        except PlatformError as error:
            await _abort(context, error)
        return pb.ModelReadyResponse(ready=self._plane.ready)

    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: Context
    ) -> pb.ModelMetadataResponse:
        """Name and version of the model, and its tensors where they are known."""
        try:
            self._plane.model.check(request.name, request.version)
        except PlatformError as error:
            await _abort(context, error)
        return proto_calls.model_metadata(self._plane)

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        """Scores; the answer's tensors are raw if the request's are."""
        headers = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        parent = telemetry.context_from(headers.get("traceparent", ""))
        with telemetry.tracer.start_as_current_span(
            f"{_SERVICE}/ModelInfer", parent, kind=SpanKind.SERVER, record_exception=False
        ) as span:
            try:
                return await self._infer(request, headers, context)
            except Exception as error:
                span.set_status(StatusCode.ERROR)
                await _abort(context, error)

    async def _infer(
        self, request: pb.ModelInferRequest, headers: dict[str, str], context: Context
    ) -> pb.ModelInferResponse:
        model = self._plane.model
        model.check(request.model_name, request.model_version)
        infer = grpc_tensors.parse_request(request)
        if "x-request-id" in headers:
            await context.send_initial_metadata((("x-request-id", headers["x-request-id"]),))
        pairs = [(key.encode(), value.encode("latin-1", "replace")) for key, value in headers.items()]
        outputs = await self._plane.infer_and_wait(infer, pairs, context.time_remaining())
        return grpc_tensors.render_response(model, infer.id, outputs, raw=bool(request.raw_input_contents))


class _Guard(grpc.aio.ServerInterceptor):
    """Lets nobody pass without a token, but for health."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """The method's handler, or one that refuses."""
        handler: Handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method in _OPEN:
            return handler
        try:
            header = _authorization(handler_call_details.invocation_metadata)
            if not self._gate.knows(header):
                await self._gate.admit(header)
        except Exception as error:
            return _refusal(handler, error)
        return handler


def _authorization(metadata: Any) -> bytes | None:
    for key, value in metadata or ():
        if key == "authorization":
            return value.encode("latin-1", "replace") if isinstance(value, str) else bytes(value)
    return None


def _refusal(handler: Handler, error: Exception) -> Handler:
    """A handler of the same kind, unary or streaming, that answers with the error."""

    async def unary(_request: Any, context: Context) -> None:
        await _abort(context, error)

    async def stream(_requests: Any, context: Context) -> AsyncIterator[None]:
        await _abort(context, error)
        yield

    make: Any = grpc.unary_unary_rpc_method_handler
    behaviour: Any = unary
    if handler.request_streaming or handler.response_streaming:
        make, behaviour = grpc.stream_stream_rpc_method_handler, stream
    result: Handler = make(behaviour, handler.request_deserializer, handler.response_serializer)
    return result


async def _abort(context: Context, error: Exception) -> NoReturn:
    """The one place where an error becomes a gRPC status."""
    status = rpc_status.to_status(to_status(errors.known(error)))
    await context.abort(status.code, status.details, status.trailing_metadata)
