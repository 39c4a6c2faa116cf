"""The gRPC server of a service: who may call, how errors leave, health, reflection, drain."""

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, cast

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status
from opentelemetry.instrumentation.grpc import aio_server_interceptor

from stellwerk_platform import activity, auth, telemetry
from stellwerk_platform.access import Guard, resource_of
from stellwerk_platform.addresses import address_of
from stellwerk_platform.errors import (
    Internal,
    PermissionDenied,
    PlatformError,
    Unauthenticated,
    as_platform_error,
    to_status,
)
from stellwerk_platform.identity import Identity, check_peer
from stellwerk_platform.limits import Limits
from stellwerk_platform.roles import PUBLIC, TABLE
from stellwerk_platform.streams import Streams
from stellwerk_protos.access.v1 import access_pb2

log = logging.getLogger(__name__)
OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    ("grpc.max_send_message_length", 16 * 1024 * 1024),
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
]
_DRAIN_SECONDS = 5.0
_UNTRACED = ("/opentelemetry.", "/grpc.health.", "/grpc.reflection.")


@dataclass(frozen=True)
class Registration:
    """A servicer, how it is added to a server, and its descriptor.

    `permission` is for services whose protos are not ours and name none.
    """

    servicer: Any
    add: Callable[[Any, grpc.aio.Server], None]
    descriptor: ServiceDescriptor
    permission: str = ""


def permissions(registration: Registration) -> dict[str, str]:
    """Permission by method path; raises `ValueError` for a method that names none of the table."""
    result = {}
    for method in registration.descriptor.methods:
        permission = registration.permission or method.GetOptions().Extensions[access_pb2.permission]
        if not permission:
            raise ValueError(f"{method.full_name} names no permission")
        if permission != PUBLIC and permission not in TABLE:
            raise ValueError(f"{method.full_name} names {permission!r}, which roles.py does not know")
        result[f"/{registration.descriptor.full_name}/{method.name}"] = permission
    return result


class Server:
    """A grpc.aio server behind the platform's interceptors."""

    def __init__(
        self,
        listen: str,
        guard: Guard,
        registrations: list[Registration],
        *,
        identity: Identity | None = None,
        health_listen: str = "",
    ) -> None:
        """`identity` makes it TLS that wants a certificate of every client; without one nothing is
        encrypted, which is for tests of single parts. `health_listen` answers probes, and only them."""
        self._permissions: dict[str, str] = {}
        for registration in registrations:
            self._permissions |= permissions(registration)
        admission = _Interceptor(guard, self._permissions)
        self._server = grpc.aio.server(
            options=OPTIONS, interceptors=[_Streams(guard.streams), _tracing(), admission]
        )
        for registration in registrations:
            registration.add(registration.servicer, self._server)
        self._health = health_aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = [registration.descriptor.full_name for registration in registrations]
        reflection.enable_server_reflection(
            [*names, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME],
            self._server,
        )
        self._names = ["", *names]
        self.port = _add_port(self._server, listen, identity)
        self._probes = _probe_server(health_listen, self._health) if health_listen else None

    async def start(self) -> None:
        """Starts to answer and reports SERVING."""
        await self._server.start()
        if self._probes is not None:
            await self._probes.start()
        for name in self._names:
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self) -> None:
        """Reports NOT_SERVING, lets running calls end for some seconds, then stops."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(_DRAIN_SECONDS)
        if self._probes is not None:
            await self._probes.stop(None)


def _add_port(server: grpc.aio.Server, listen: str, identity: Identity | None) -> int:
    if identity is None:
        return server.add_insecure_port(listen)
    return server.add_secure_port(listen, identity.server_credentials())


def _probe_server(listen: str, health: Any) -> grpc.aio.Server:
    """Health alone, without TLS: a kubelet has no certificate of ours."""
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    server.add_insecure_port(listen)
    return server


def _tracing() -> grpc.aio.ServerInterceptor:
    """Spans for every RPC but those that happen all the time by themselves, or are about spans."""
    interceptor: grpc.aio.ServerInterceptor = aio_server_interceptor(  # type: ignore[no-untyped-call]
        filter_=lambda details: not details.method.startswith(_UNTRACED)
    )
    return interceptor


class _Streams(grpc.aio.ServerInterceptor):
    """Ends what answers a stream in the moment in which the RPC ends.

    grpc.aio drops a generator whose client has gone while it was suspended, and leaves its
    `finally` to the garbage collector, in another context than the one it began in. And a
    stream whose caller may no longer have it ends with that error.
    """

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    async def intercept_service(
        self, continuation: Any, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        handler: Any = await continuation(handler_call_details)
        if handler is None or not handler.response_streaming:
            return cast("grpc.RpcMethodHandler[Any, Any]", handler)
        method = handler_call_details.method.removeprefix("/")
        behaviour = handler.stream_stream if handler.request_streaming else handler.unary_stream
        if not inspect.isasyncgenfunction(behaviour):
            return cast("grpc.RpcMethodHandler[Any, Any]", handler)

        async def write(request: Any, context: Any) -> None:
            with self._streams.open() as stream:
                try:
                    async with aclosing(behaviour(request, context)) as responses:
                        async for response in responses:
                            await context.write(response)
                except asyncio.CancelledError:
                    if stream.error is None:
                        raise
                    stream.task.uncancel()
                    report(method, request, context, stream.error)
                    await abort(context, stream.error)

        return _HANDLERS[bool(handler.request_streaming), True](
            write, handler.request_deserializer, handler.response_serializer
        )


class _Interceptor(grpc.aio.ServerInterceptor):
    """Authenticates, authorises, and is the one place that turns errors into statuses."""

    def __init__(self, guard: Guard, granted: Mapping[str, str]) -> None:
        self._guard = guard
        self._permissions = granted
        self._limits = Limits()

    async def intercept_service(
        self,
        continuation: Any,
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        handler: grpc.RpcMethodHandler[Any, Any] = await continuation(handler_call_details)
        method = handler_call_details.method
        # Health and reflection have no entry and need none; an unknown method has no handler.
        permission = self._permissions.get(method)
        if handler is None or permission is None:
            return handler
        return _Method(method.removeprefix("/"), permission, self._guard, self._limits).wrap(handler)


# By whether requests and responses are streams.
_HANDLERS: Mapping[tuple[bool, bool], Callable[..., "grpc.RpcMethodHandler[Any, Any]"]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


@dataclass(frozen=True)
class _Method:
    """A method with admission before its handler and error translation around it."""

    name: str
    permission: str
    guard: Guard
    limits: Limits

    def wrap(self, handler: Any) -> "grpc.RpcMethodHandler[Any, Any]":
        """The handler that does so."""

        async def unary(request: Any, context: Any) -> Any:
            try:
                caller = await self._admit(request, context)
                behaviour = handler.stream_unary if handler.request_streaming else handler.unary_unary
                with self.limits.one_more(caller, streaming=False):
                    return await behaviour(request, context)
            except Exception as error:
                await self._refuse(request, context, error)

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                caller = await self._admit(request, context)
                behaviour = handler.stream_stream if handler.request_streaming else handler.unary_stream
                with self.limits.one_more(caller, streaming=True):
                    async with aclosing(behaviour(request, context)) as responses:
                        async for response in responses:
                            yield response
            except Exception as error:
                await self._refuse(request, context, error)

        make = _HANDLERS[bool(handler.request_streaming), bool(handler.response_streaming)]
        behaviour: Any = stream if handler.response_streaming else unary
        return make(behaviour, handler.request_deserializer, handler.response_serializer)

    async def _admit(self, request: Any, context: Any) -> auth.Caller | None:
        """The caller, who may make the call; None where everybody may."""
        if self.permission == PUBLIC:
            auth.set_address(address_of(context))
            return None
        metadata = context.invocation_metadata()
        message = request if isinstance(request, Message) else None
        caller = await self.guard.authenticate(metadata)
        check_peer(context, caller.subject, caller.role)
        caller = replace(caller, address=address_of(context))
        auth.set_caller(caller)
        await self.guard.authorise(caller, self.permission, message)
        self.guard.streams.admitted(caller, metadata, self.permission, message)
        return caller

    async def _refuse(self, request: Any, context: Any, error: Exception) -> None:
        if isinstance(error, Unauthenticated | PermissionDenied):
            report(self.name, request, context, error)
        await abort(context, error)


def report(method: str, request: Any, context: Any, error: PlatformError) -> None:
    """Tells the activity log that a call was refused."""
    activity.denied(
        method,
        error,
        actor=auth.current_actor("") if auth.is_called() else "",
        resource=resource_of(request) if isinstance(request, Message) else "",
        address=address_of(context),
    )


async def abort(context: Any, error: Exception) -> None:
    """Ends an RPC with the status of an error; the one place where errors become statuses."""
    if isinstance(error, grpc.aio.AbortError | grpc.aio.BaseError) and not isinstance(
        error, grpc.aio.AioRpcError
    ):
        raise error
    known = as_platform_error(error)
    if known is None:
        trace = telemetry.trace_id()
        log.error("An unexpected error (trace %s)", trace or "none", exc_info=error)
        known = Internal("INTERNAL", f"An unexpected error; trace {trace or 'not recorded'}.", "Report it.")
    status = rpc_status.to_status(to_status(known))
    await context.abort(status.code, status.details, status.trailing_metadata)
