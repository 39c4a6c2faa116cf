"""Forwards gRPC calls as bytes: a message is never parsed, so any method of a known package passes.

The service behind checks the caller; metadata, deadline, half-close and cancellation go
on as they came, and initial metadata, trailing metadata and status come back the same way.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # the stubs leave it out
from opentelemetry.trace import SpanKind, StatusCode

from stellwerk_gateway import catalog
from stellwerk_gateway.backends import Backend, Backends
from stellwerk_platform import telemetry
from stellwerk_platform.addresses import METADATA_KEY, address_of_peer
from stellwerk_platform.errors import Unavailable
from stellwerk_platform.grpc_server import abort

DETAILS_KEY = "grpc-status-details-bin"
TRACEPARENT = "traceparent"
# Set by each connection for itself.
_OWN_METADATA = frozenset({"user-agent", "content-type", "te", METADATA_KEY})
# Spans on their way to the collector must not make spans.
_UNTRACED = (catalog.COLLECTOR_PREFIX, "stellwerk.telemetry.")

_UNARY_SECONDS = 60.0

Metadata = list[tuple[str, str | bytes]]


class Forwarder(grpc.GenericRpcHandler):
    """Finds the backend of a method by its package."""

    def __init__(self, backends: Backends) -> None:
        self._backends = backends
        self._unary = {
            method.path
            for method in catalog.methods()
            if not method.streams_requests and not method.streams_responses
        }
        self._stopping = asyncio.Event()

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """The handler of one call; None, which means UNIMPLEMENTED, for a service that is not ours."""
        method = handler_call_details.method
        name = catalog.backend_of(method)
        if name is None:
            return None
        backend = self._backends[name]
        if method in self._unary:
            return grpc.unary_unary_rpc_method_handler(_Unary(backend, method).handle)
        return grpc.stream_stream_rpc_method_handler(_Stream(backend, method, self._stopping).handle)

    def stop(self) -> None:
        """Ends all streams: they would hold up the stop, and their clients connect again."""
        self._stopping.set()


class _Unary:
    def __init__(self, backend: Backend, method: str) -> None:
        self._backend = backend
        self._method = method

    async def handle(self, request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        metadata = onward(context)
        try:
            with traced(self._method, metadata) as metadata:
                call = (await self._backend.unary(self._method))(
                    request, metadata=metadata, timeout=unary_timeout(context.time_remaining())
                )
                return await finish(call, context)
        except grpc.aio.AioRpcError as error:
            await pass_on(context, error, self._backend)
        except Unavailable as error:
            await abort(context, error)


def unary_timeout(given_seconds: float | None) -> float:
    """What the caller grants; a caller who says nothing does not wait for ever either."""
    return _UNARY_SECONDS if given_seconds is None else given_seconds


async def finish(call: Any, context: Any) -> Any:
    """The response of a unary call; whoever leaves early takes the call with it."""
    try:
        if initial := received(await call.initial_metadata()):
            await context.send_initial_metadata(initial)
        response = await call
        context.set_trailing_metadata(received(await call.trailing_metadata()))
        return response
    finally:
        call.cancel()


class _Stream:
    def __init__(self, backend: Backend, method: str, stopping: asyncio.Event) -> None:
        self._backend = backend
        self._method = method
        self._stopping = stopping

    async def handle(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[bytes]:
        try:
            start = await self._backend.stream(self._method)
        except Unavailable as error:
            await abort(context, error)
            return
        call = start(metadata=onward(context), timeout=context.time_remaining())
        helpers = [asyncio.create_task(_pump(requests, call)), asyncio.create_task(self._stop(call))]
        try:
            await context.send_initial_metadata(received(await call.initial_metadata()))
            async for response in call:
                yield response
            if await call.code() is grpc.StatusCode.OK:
                context.set_trailing_metadata(received(await call.trailing_metadata()))
                return
        except grpc.aio.AioRpcError as error:
            await pass_on(context, error, self._backend)
        except asyncio.CancelledError:
            # Either the client has gone, then this task is cancelled, or the gateway stops.
            if not self._stopping.is_set():
                raise
            await abort(context, _stopping())
        finally:
            call.cancel()
            for helper in helpers:
                helper.cancel()

    async def _stop(self, call: Any) -> None:
        await self._stopping.wait()
        call.cancel()


async def _pump(requests: AsyncIterator[bytes], call: Any) -> None:
    """Sends what the client sends, then its half-close."""
    # A call that has ended takes no more requests; its end is told by the responses' side. `call.write`
    # would put "Internal error from Core" in the place of the status that is just coming in.
    ended = (grpc.RpcError, asyncio.InvalidStateError, grpc.aio.UsageError, cygrpc.InternalError)
    with contextlib.suppress(*ended):
        await call.wait_for_connection()
        async for request in requests:
            await call._cython_call.send_serialized_message(request)
        await call._cython_call.send_receive_close()


@contextlib.contextmanager
def traced(method: str, metadata: Metadata) -> Any:
    """A server span around a call; gives the metadata to send on, with the span as parent."""
    name = method.removeprefix("/")
    if name.startswith(_UNTRACED):
        yield metadata
        return
    parent = next((str(value) for key, value in metadata if key == TRACEPARENT), "")
    with telemetry.tracer.start_as_current_span(
        name,
        telemetry.context_from(parent),
        kind=SpanKind.SERVER,
        attributes={"rpc.system": "grpc"},
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        if own := telemetry.traceparent():
            metadata = [(key, value) for key, value in metadata if key != TRACEPARENT]
            metadata.append((TRACEPARENT, own))
        try:
            yield metadata
        except grpc.aio.AioRpcError as error:
            span.set_status(StatusCode.ERROR, error.code().name)
            raise


async def pass_on(context: Any, error: grpc.aio.AioRpcError, backend: Backend) -> None:
    """Ends a call as the backend ended it; a lost connection gets a reason of our own."""
    trailing = received(error.trailing_metadata())
    if is_lost_connection(error):
        await abort(context, backend.unavailable(error.details() or ""))
    await context.abort(error.code(), error.details() or "", tuple(trailing))


def is_lost_connection(error: grpc.aio.AioRpcError) -> bool:
    """Whether the transport gave up, as opposed to a service that says it is unavailable."""
    return error.code() is grpc.StatusCode.UNAVAILABLE and not any(
        key == DETAILS_KEY for key, _ in error.trailing_metadata() or ()
    )


def onward(context: Any) -> Metadata:
    """The caller's metadata without what belongs to its connection, and its address as it is seen here."""
    kept: Metadata = [
        (key, value)
        for key, value in context.invocation_metadata() or ()
        if key not in _OWN_METADATA and not key.startswith(("grpc-", ":"))
    ]
    return [*kept, (METADATA_KEY, address_of_peer(context.peer()))]


def received(metadata: Iterable[tuple[str, str | bytes]] | None) -> Metadata:
    """A backend's metadata as it may be sent to the caller."""
    return [
        (key, value)
        for key, value in metadata or ()
        if key == DETAILS_KEY or (key not in _OWN_METADATA and not key.startswith(("grpc-", ":")))
    ]


def _stopping() -> Unavailable:
    return Unavailable("GATEWAY_STOPPING", "The gateway stops.", "Connect again.", {"service": "gateway"})
