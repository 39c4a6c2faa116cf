"""The Connect protocol for every unary and server-streaming method, without code per method.

`connectrpc` speaks the protocol (JSON and binary, compression, time-outs, end of stream);
its endpoints are built from the descriptors, and its codecs carry bytes: a binary message
passes through, a JSON one is translated by `google.protobuf.json_format`. Methods that
stream requests are for the gRPC door. connectrpc has a protobuf runtime of its own, whose
messages appear here only as details of errors.
"""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

import grpc
from connectrpc.code import Code
from connectrpc.errors import ConnectError, ErrorDetail
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.request import RequestContext
from connectrpc.server import ConnectASGIApplication, Endpoint
from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from protobuf.wkt import Any as AnyMessage
from protobuf.wkt import Struct

from stellwerk_gateway import catalog
from stellwerk_gateway.asgi import Header, send_error
from stellwerk_gateway.backends import Backend, Backends
from stellwerk_gateway.forward import (
    DETAILS_KEY,
    Metadata,
    is_lost_connection,
    received,
    traced,
    unary_timeout,
)
from stellwerk_gateway.headers import CARRIED, carried
from stellwerk_gateway.refusals import Counted
from stellwerk_platform.addresses import METADATA_KEY
from stellwerk_platform.errors import InvalidArgument, PlatformError, Unimplemented, to_status

_MAX_MESSAGE_BYTES = 16 * 1024 * 1024
# What the runtime reads itself.
_PROTOCOL_HEADERS = frozenset({b"content-type", b"content-encoding", b"accept-encoding", b"host"})
_PROTOCOL_PREFIXES = (b"connect-", b"grpc-")
# gRPC itself is for the gRPC door: it ends with trailers, which ASGI servers do not have.
_GRPC = re.compile(rb"application/grpc(\+.*)?", re.DOTALL)


class _Encoded(NamedTuple):
    """A response as the backend sent it, and its type for those who want JSON."""

    body: bytes
    kind: type[Message]


class _BinaryCodec:
    """Bytes in, bytes out."""

    def name(self) -> str:
        return "proto"

    def encode(self, message: _Encoded) -> bytes:
        return message.body

    def decode(self, data: bytes | bytearray, message_class: type[Message]) -> bytes:
        body = bytes(data)
        try:
            # A service would call it an error of its own.
            message_class.FromString(body)
        except DecodeError as error:
            raise _to_connect(
                InvalidArgument(
                    "INVALID_PROTO",
                    f"The body is no {message_class.DESCRIPTOR.name} in binary.",
                    "Send the serialised message, or JSON with 'content-type: application/json'.",
                )
            ) from error
        return body


class _JsonCodec:
    """Proto JSON at this side, binary at the backend's."""

    def name(self) -> str:
        return "json"

    def encode(self, message: _Encoded) -> bytes:
        document = json_format.MessageToDict(message.kind.FromString(message.body))
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()

    def decode(self, data: bytes | bytearray, message_class: type[Message]) -> bytes:
        try:
            document = json.loads(data)
            if not isinstance(document, dict):
                raise ValueError("it is not an object")
            return json_format.ParseDict(document, message_class()).SerializeToString()
        except (json_format.ParseError, ValueError, RecursionError) as error:
            raise _to_connect(
                InvalidArgument(
                    "INVALID_JSON",
                    f"The body is not a {message_class.DESCRIPTOR.name} in JSON: {error}",
                    "Send a JSON object with the fields that the method takes.",
                )
            ) from error


class MethodNotAllowed(Unimplemented):
    """The path exists, but not with this HTTP method."""

    http_status = 405


class UnsupportedMediaType(InvalidArgument):
    """The body is of a kind that the protocol does not know."""

    http_status = 415


class ConnectDoor(ConnectASGIApplication[Backends]):
    """The ASGI application; `paths` are those that it answers."""

    def __init__(self, backends: Backends) -> None:
        endpoints = {
            method.path: _endpoint(method, backends[method.backend])
            for method in catalog.methods()
            if not method.streams_requests
        }
        self.paths = frozenset(endpoints)
        super().__init__(
            service=backends,
            endpoints=lambda _: endpoints,
            read_max_bytes=_MAX_MESSAGE_BYTES,
            codecs=[_BinaryCodec(), _JsonCodec()],
        )

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers one request; what `connectrpc` refuses without a word gets an error as everywhere here."""
        refused = False
        try:
            scope = {**scope, "headers": _readable(scope["headers"])}
        except PlatformError as error:
            await send_error(send, error, _ACCEPTED if isinstance(error, UnsupportedMediaType) else ())
            return

        async def explained(message: Any) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and message["status"] in _REFUSALS:
                refused = True
                headers = [header for header in message["headers"] if header[0] in _KEPT_HEADERS]
                await send_error(send, _REFUSALS[message["status"]](), headers)
            elif not refused:
                await send(message)

        counted: Any = Counted(scope, receive, _MAX_MESSAGE_BYTES)
        await super().__call__(scope, counted, explained)

    @property
    def path(self) -> str:
        """The prefix below which the methods lie: none."""
        return "/"


def _endpoint(method: catalog.Method, backend: Backend) -> Any:
    call = _Call(method, backend)
    info: Any = MethodInfo(
        name=method.name,
        service_name=method.service,
        # The runtime only hands it to the codec.
        input=method.request,
        output=method.response,
        idempotency_level=IdempotencyLevel.UNKNOWN,
        stream_type=StreamType.SERVER_STREAM if method.streams_responses else StreamType.UNARY,
    )
    if method.streams_responses:
        return Endpoint.server_stream(method=info, function=call.stream)
    return Endpoint.unary(method=info, function=call.unary)


def _method_not_allowed() -> PlatformError:
    return MethodNotAllowed(
        "METHOD_NOT_ALLOWED",
        "A method of a service is called with POST.",
        "Send a POST request; its body is the request in JSON: curl -d '{}'.",
    )


def _unsupported_media_type() -> PlatformError:
    return UnsupportedMediaType(
        "MEDIA_TYPE_UNSUPPORTED",
        "The content-type of the request is none that this method takes.",
        "Send 'content-type: application/json' with a body in JSON; methods that answer with a stream take "
        "'application/connect+json', see https://connectrpc.com/docs/protocol.",
    )


_REFUSALS = {405: _method_not_allowed, 415: _unsupported_media_type}
# They say what is accepted instead.
_KEPT_HEADERS = (b"allow", b"accept-post")
_ACCEPTED = [(b"accept-post", b"application/json, application/proto")]


def _readable(headers: Sequence[Header]) -> list[Header]:
    """The headers without what the runtime cannot take; raises `InvalidArgument`."""
    kept = [
        (name, value.decode("latin-1").encode())
        for name, value in headers
        if name in _PROTOCOL_HEADERS or name.startswith(_PROTOCOL_PREFIXES)
    ]
    if _GRPC.fullmatch(dict(kept).get(b"content-type", b"")):
        raise _unsupported_media_type()
    return [*kept, *((name.encode(), value.encode()) for name, value in carried(headers))]


class _Call:
    """One method of one backend."""

    def __init__(self, method: catalog.Method, backend: Backend) -> None:
        self._method = method
        self._backend = backend

    async def unary(self, request: bytes, context: RequestContext[Any, Any]) -> _Encoded:
        with self._translated(), traced(self._method.path, _metadata(context)) as metadata:
            call = (await self._backend.unary(self._method.path))(
                request, metadata=metadata, timeout=unary_timeout(_timeout_seconds(context))
            )
            try:
                response = await call
            finally:
                call.cancel()
            _add_trailers(context, await call.trailing_metadata())
            return _Encoded(response, self._method.response)

    async def stream(self, request: bytes, context: RequestContext[Any, Any]) -> AsyncIterator[_Encoded]:
        with self._translated():
            start = await self._backend.stream(self._method.path)
            call = start(metadata=_metadata(context), timeout=_timeout_seconds(context))
            try:
                with contextlib.suppress(asyncio.InvalidStateError):
                    await call.write(request)
                    await call.done_writing()
                async for response in call:
                    yield _Encoded(response, self._method.response)
                _add_trailers(context, await call.trailing_metadata())
            finally:
                call.cancel()

    @contextlib.contextmanager
    def _translated(self) -> Any:
        try:
            yield
        except grpc.aio.AioRpcError as error:
            if is_lost_connection(error):
                raise _to_connect(self._backend.unavailable(error.details() or "")) from error
            status = rpc_status.from_call(error)
            details = status.details if status is not None else ()
            raise ConnectError(_code(error.code()), error.details() or "", map(_detail, details)) from error
        except PlatformError as error:
            raise _to_connect(error) from error


def _metadata(context: RequestContext[Any, Any]) -> Metadata:
    headers = context.request_headers
    kept: Metadata = [(name, headers[name]) for name in CARRIED if name in headers]
    address = context.client_address or ""
    return [*kept, (METADATA_KEY, address.rpartition(":")[0].strip("[]"))]


def _timeout_seconds(context: RequestContext[Any, Any]) -> float | None:
    return None if context.timeout_ms is None else max(context.timeout_ms / 1000, 0.001)


def _add_trailers(context: RequestContext[Any, Any], metadata: Any) -> None:
    for key, value in received(metadata):
        if key != DETAILS_KEY and isinstance(value, str):
            context.response_trailers.add(key, value)


def _code(code: grpc.StatusCode) -> Code:
    return Code.CANCELED if code is grpc.StatusCode.CANCELLED else Code(code.name.lower())


def _to_connect(error: PlatformError) -> ConnectError:
    status: status_pb2.Status = to_status(error)
    return ConnectError(_code(error.grpc_code), error.message, map(_detail, status.details))


class _ReadableDetail(ErrorDetail):
    """A detail with its content as JSON beside the bytes, for who reads it with curl."""

    def __init__(self, packed: AnyMessage, content: Struct) -> None:
        super().__init__(packed)
        self._content = content

    def value(self, *_: Any) -> Any:
        """What the runtime prints as `debug`."""
        return self._content


def _detail(packed: Any) -> ErrorDetail:
    copy = AnyMessage(type_url=packed.type_url, value=packed.value)
    info = error_details_pb2.ErrorInfo()
    if not packed.Unpack(info):
        return ErrorDetail(copy)
    return _ReadableDetail(copy, Struct.from_json(json_format.MessageToJson(info)))
