"""Channels to other services: token, trace context, a deadline on every call, and retries
where a repeated call is harmless."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import grpc
from opentelemetry.instrumentation.grpc import aio_client_interceptors

from stellwerk_platform.identity import DOMAIN, Identity
from stellwerk_platform.renewed_channel import RenewedChannel

OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    ("grpc.max_send_message_length", 16 * 1024 * 1024),
    # A service that was killed comes back on its port within moments.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
]
_DEADLINE_SECONDS = 30.0
_SAFE = ("Get", "List", "Prepare")


class Credentials(Protocol):
    """Gives the bearer token to show."""

    async def token(self) -> str:
        """A living token."""


def connect(
    address: str,
    credentials: Credentials | None = None,
    *,
    identity: Identity | None = None,
    service: str = "",
) -> grpc.aio.Channel:
    """A channel to `host:port`. Without credentials only public methods answer.

    With an identity both sides show certificates, and the other's must be that of `service`. Without
    one nothing is encrypted: for the doors of the gateway on this machine, and for tests of single parts.
    """
    interceptors: list[grpc.aio.ClientInterceptor] = [*_tracing(), _Deadline()]
    if credentials is not None:
        interceptors += [_UnaryAuth(credentials), _StreamAuth(credentials), _BidiAuth(credentials)]
    return open_channel(address, OPTIONS, interceptors, identity, service)


def open_channel(
    address: str,
    options: Sequence[tuple[str, Any]] = OPTIONS,
    interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
    identity: Identity | None = None,
    service: str = "",
) -> grpc.aio.Channel:
    """The same, bare: no deadline, token or trace but what the interceptors bring."""
    if identity is None:
        return grpc.aio.insecure_channel(address, options=options, interceptors=interceptors)
    named = [*options, ("grpc.ssl_target_name_override", f"{service}.{DOMAIN}")]

    def make(credentials: grpc.ChannelCredentials) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(address, credentials, options=named, interceptors=interceptors)

    return RenewedChannel(identity, make)


def _tracing() -> list[grpc.aio.ClientInterceptor]:
    interceptors: list[grpc.aio.ClientInterceptor] = aio_client_interceptors()  # type: ignore[no-untyped-call]
    return interceptors


class _Deadline(grpc.aio.UnaryUnaryClientInterceptor):
    """A deadline for every unary call, within which it waits for the service and repeats what is safe."""

    async def intercept_unary_unary(
        self,
        continuation: Callable[..., Any],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        timeout = client_call_details.timeout or _DEADLINE_SECONDS
        deadline = asyncio.get_running_loop().time() + timeout
        method = client_call_details.method
        name = (method.decode() if isinstance(method, bytes) else method).rsplit("/", 1)[-1]
        safe = name.startswith(_SAFE) or bool(getattr(request, "request_id", ""))
        while True:
            details = grpc.aio.ClientCallDetails(
                client_call_details.method,
                deadline - asyncio.get_running_loop().time(),
                client_call_details.metadata,
                client_call_details.credentials,
                wait_for_ready=client_call_details.wait_for_ready is not False,
            )
            call = await continuation(details, request)
            code = await call.code()
            remaining = deadline - asyncio.get_running_loop().time()
            if code is not grpc.StatusCode.UNAVAILABLE or not safe or remaining < 1:
                return call
            await asyncio.sleep(0.2)


class _Auth:
    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    async def _with_token(self, details: grpc.aio.ClientCallDetails) -> grpc.aio.ClientCallDetails:
        metadata = grpc.aio.Metadata(*(details.metadata or ()))
        metadata["authorization"] = f"Bearer {await self._credentials.token()}"
        return grpc.aio.ClientCallDetails(
            details.method, details.timeout, metadata, details.credentials, details.wait_for_ready
        )


class _UnaryAuth(_Auth, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        return await continuation(await self._with_token(client_call_details), request)


class _StreamAuth(_Auth, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self, continuation: Callable[..., Any], client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        return await continuation(await self._with_token(client_call_details), request)


class _BidiAuth(_Auth, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(
        self,
        continuation: Callable[..., Any],
        client_call_details: grpc.aio.ClientCallDetails,
        request_iterator: Any,
    ) -> Any:
        return await continuation(await self._with_token(client_call_details), request_iterator)
