"""Scoring over gRPC: `inference.GRPCInferenceService`, for the endpoint that the metadata names.

A message goes to the replica as the body of an HTTP/1.1 request, untouched
(docs/contracts/open-inference.md, "Between the doors and a replica"): a second gRPC hop
was measured to cost as much as the whole rest.
"""

import asyncio
import base64
import logging
from collections.abc import Iterable, Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import status_pb2
from opentelemetry.trace import Span

from stellwerk_gateway import catalog, refusals
from stellwerk_gateway.asgi import Header
from stellwerk_gateway.forward import DETAILS_KEY
from stellwerk_gateway.scoring import access, tracing
from stellwerk_gateway.scoring.access import REQUEST_ID
from stellwerk_gateway.scoring.call import CLIENT_GONE, Call
from stellwerk_gateway.scoring.deployment import Deployment
from stellwerk_gateway.scoring.headers import STICKY
from stellwerk_gateway.scoring.router import Router
from stellwerk_platform.addresses import address_of_peer
from stellwerk_platform.errors import Internal, InvalidArgument, PlatformError, Unavailable
from stellwerk_platform.grpc_server import abort

log = logging.getLogger(__name__)
_DROPPED = frozenset(
    {
        "x-stellwerk-sample",
        *("authorization", access.ENDPOINT_KEY, REQUEST_ID, "traceparent", "azureml-model-deployment"),
        *("user-agent", "content-type", "te", "connection", "host", "content-length", "transfer-encoding"),
        *("upgrade", "keep-alive", "expect", "trailer", "cookie"),
    }
)
_CONTROL = frozenset("\r\n\0")
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class ScoringHandler(grpc.GenericRpcHandler):
    """Sends each call to a replica."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """The handler of one call; None for another service."""
        method = handler_call_details.method
        if method not in catalog.SCORING_METHODS:
            return None
        if method not in self._handlers:

            async def handle(request: bytes, context: Any) -> Any:
                return await self._handle(method, request, context)

            self._handlers[method] = grpc.unary_unary_rpc_method_handler(handle)
        return self._handlers[method]

    async def _handle(self, method: str, request: bytes, context: Any) -> Any:
        call = _GrpcCall(self._router, method, request, context)
        try:
            return await call.run()
        except PlatformError as error:
            call.end(error.http_status, error.reason)
            address = address_of_peer(context.peer())
            refusals.report(
                method[1:], error, address, access.told_endpoint(dict(context.invocation_metadata() or ()))
            )
            await abort(context, error)
        except asyncio.CancelledError:
            call.cancel()
            call.end(CLIENT_GONE)
            raise
        except grpc.aio.AbortError:
            raise
        except Exception:
            log.exception("An unexpected error")
            call.cancel()
            defect = Internal("INTERNAL", "An unexpected error; the gateway's log has it.", "Report it.")
            call.end(defect.http_status, defect.reason)
            await abort(context, defect)


class _GrpcCall(Call):
    """One call."""

    def __init__(self, router: Router, method: str, request: bytes, context: Any) -> None:
        super().__init__(router.limits.park_seconds)
        self._router = router
        self._method = method
        self._request = request
        self._context = context
        self._metadata: Sequence[tuple[str, str | bytes]] = context.invocation_metadata() or ()
        self._fields = dict(self._metadata)
        self._endpoint = ""
        self._head = b""
        self._span: Span | None = None
        # Seconds of the caller's deadline when the request was handed on; None without one.
        self._remaining: float | None = None
        self._status = 0
        self._parts: list[bytes] = []
        self._answer: asyncio.Future[int] = self._loop.create_future()

    async def run(self) -> bytes:
        """The answer; raises `PlatformError`, or aborts with the replica's own error."""
        fields = self._fields
        _check_lines(self._metadata)
        self._endpoint = access.endpoint_of(fields)
        given = str(fields.get(REQUEST_ID, ""))
        access.check_request_id(given)
        request_id = given or access.new_request_id()
        traceparent, self._span = self._router.tracer.begin(
            self._method[1:], _bytes(fields.get("traceparent", "")), request_id
        )
        onward, deployment = await self._prepare()
        self._head = b"".join(
            (
                *(b"POST ", self._method.encode(), b" HTTP/1.1\r\nhost: replica\r\n"),
                *(b"content-type: application/proto\r\nauthorization: ", onward.encode()),
                *(b"\r\ntraceparent: ", traceparent, b"\r\nx-request-id: ", request_id.encode(), b"\r\n"),
                *_lines(self._metadata),
            )
        )
        if given:
            await self._context.send_initial_metadata(((REQUEST_ID, given),))
        self._copy(deployment)
        remaining = self._remaining = self._context.time_remaining()
        limit = deployment.timeout_seconds
        self.send_to(deployment, limit if remaining is None else min(limit, remaining))
        status = await self._answer
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        if status != 200:
            await self._pass_on(status, body)
        self.end(status)
        return body

    async def _prepare(self) -> tuple[str, Deployment]:
        authorization = str(self._fields.get("authorization", ""))
        wanted = str(self._fields.get("azureml-model-deployment", ""))
        endpoint = self._router.endpoint(self._endpoint)
        sticky = b""
        if endpoint is not None:
            sticky = _bytes(
                self._fields.get(endpoint.sticky_header.decode(), "") or self._fields.get(STICKY.decode(), "")
            )
            onward = self._router.access.remembered(authorization, self._endpoint)
            if onward is not None and (deployment := endpoint.choose(wanted, sticky)) is not None:
                return onward, deployment
        return await self._router.prepare(self._endpoint, authorization, wanted, sticky)

    def _copy(self, deployment: Deployment) -> None:
        endpoint = self._router.endpoint(self._endpoint)
        if endpoint is not None and endpoint.copies and (due := endpoint.mirrors(deployment)):
            ending = b"x-stellwerk-mirrored: true\r\ncontent-length: %d\r\n\r\n" % len(self._request)
            held = len(self._request) <= self._router.limits.held_body_bytes
            self._router.mirrors.send(due, self._head + ending + self._request if held else None)

    async def _pass_on(self, status: int, body: bytes) -> None:
        """Ends the call as the replica ended it."""
        details = status_pb2.Status()
        try:
            details.ParseFromString(body)
        except DecodeError:
            details.code = 0
        if details.code not in _CODES or details.code == 0:
            raise Unavailable("REPLICA_ANSWER_INVALID", f"The replica answered with HTTP status {status}.")
        self.end(status)
        await self._context.abort(_CODES[details.code], details.message, ((DETAILS_KEY, body),))

    # The replica's side

    def request(self, deployment: Deployment) -> tuple[bytes, bool]:
        remaining = self._remaining
        deadline = b"" if remaining is None else b"connect-timeout-ms: %d\r\n" % max(1, int(remaining * 1000))
        length = b"content-length: %d\r\n\r\n" % len(self._request)
        return b"".join((self._head, deadline, length, self._request)), True

    def head(self, status: int, headers: Sequence[Header], length: int | None) -> None:
        self._status = status

    def body(self, data: bytes) -> None:
        self._parts.append(data)

    def finish(self) -> None:
        if not self._answer.done():
            self._answer.set_result(self._status)

    def fail(self, error: PlatformError) -> None:
        if not self._answer.done():
            self._answer.set_exception(error)

    def end(self, status: int, reason: str = "") -> None:
        """Counts the call, once."""
        self.count(status, None if self.deployment is not None else self._router.counters(self._endpoint))
        if self._span is not None:
            deployment = self.deployment.id if self.deployment is not None else ""
            tracing.end(self._span, status, reason, self._endpoint, deployment)


def _check_lines(metadata: Iterable[tuple[str, str | bytes]]) -> None:
    """Raises `InvalidArgument` for a value that would be more than one line of an HTTP head.

    gRPC takes what HTTP/2 carries; clients' libraries send no such thing, but others can.
    """
    for key, value in metadata:
        if isinstance(value, str) and not _CONTROL.isdisjoint(value):
            raise InvalidArgument(
                "METADATA_INVALID", f"The metadata {key} has a line break.", "Send text of one line."
            )


def _lines(metadata: Iterable[tuple[str, str | bytes]]) -> Iterable[bytes]:
    """The caller's metadata as header lines, binary values in base 64 as gRPC has them on the wire."""
    for key, value in metadata:
        if key in _DROPPED or key.startswith(("grpc-", ":")):
            continue
        text = base64.b64encode(value).rstrip(b"=") if isinstance(value, bytes) else value.encode("latin-1")
        yield b"%b: %b\r\n" % (key.encode(), text)


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("latin-1", "replace")
