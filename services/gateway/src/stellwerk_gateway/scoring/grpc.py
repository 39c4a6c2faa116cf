"""Scoring over gRPC: `inference.GRPCInferenceService`, for the endpoint that the metadata names."""

import asyncio
from typing import Any

import grpc

from stellwerk_gateway import catalog, refusals
from stellwerk_gateway.forward import Metadata, finish, is_lost_connection, onward, received, traced
from stellwerk_gateway.scoring import access
from stellwerk_gateway.scoring.access import REQUEST_ID, Access
from stellwerk_gateway.scoring.routes import RouteTable
from stellwerk_platform.errors import PlatformError, Unavailable, from_rpc
from stellwerk_platform.grpc_client import OPTIONS
from stellwerk_platform.grpc_server import abort

_PREFIX = f"/{catalog.SCORING_SERVICE}/"
_DROPPED = frozenset({"authorization", access.ENDPOINT_KEY, REQUEST_ID})
# The scorer's reasons for which the request has not reached the script.
_ASK_ANOTHER = frozenset({"WORKER_NOT_READY"})
# Calls that still run when a replica leaves the table get this long.
_CLOSE_GRACE_SECONDS = 30.0


class ScoringHandler(grpc.GenericRpcHandler):
    """Sends each call to a replica; another one is asked once when the connection is lost."""

    def __init__(self, routes: RouteTable, admission: Access, timeout_seconds: float) -> None:
        self._routes = routes
        self._access = admission
        self._timeout_seconds = timeout_seconds
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._closing: set[asyncio.Task[None]] = set()
        routes.on_change(self._prune)

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """The handler of one call; None for another service."""
        method = handler_call_details.method
        if not method.startswith(_PREFIX):
            return None

        async def handle(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            return await self._handle(method, request, context)

        return grpc.unary_unary_rpc_method_handler(handle)

    async def close(self) -> None:
        """Closes all connections to replicas."""
        await asyncio.gather(*(channel.close() for channel in self._channels.values()), *self._closing)

    async def _handle(self, method: str, request: bytes, context: Any) -> Any:
        given = context.invocation_metadata()
        fields = dict(given or ())
        try:
            endpoint = access.endpoint_of(fields)
            await self._access.admit(given or (), endpoint)
            metadata = [(key, value) for key, value in onward(given) if key not in _DROPPED]
            metadata += [(REQUEST_ID, access.request_id(fields.get(REQUEST_ID)))]
            with traced(method, metadata) as metadata:
                return await self._score(endpoint, method, request, metadata, context)
        except grpc.aio.AioRpcError as error:
            trailing = tuple(received(error.trailing_metadata()))
            await context.abort(error.code(), error.details() or "", trailing)
        except PlatformError as error:
            address = refusals.address_of_peer(context.peer())
            refusals.report(method[1:], error, address, access.told_endpoint(fields))
            await abort(context, error)

    async def _score(
        self, endpoint: str, method: str, request: bytes, metadata: Metadata, context: Any
    ) -> Any:
        replicas = await self._routes.next(endpoint)
        metadata = [*metadata, ("authorization", await self._access.authorization(endpoint))]
        remaining = context.time_remaining()
        timeout = self._timeout_seconds if remaining is None else min(remaining, self._timeout_seconds)
        problem: grpc.aio.AioRpcError | None = None
        for replica in (replicas[0], replicas[1 % len(replicas)]):
            call: Any = self._channel(replica.grpc_address).unary_unary(method)
            try:
                return await finish(call(request, metadata=metadata, timeout=timeout), context)
            except grpc.aio.AioRpcError as error:
                if not is_lost_connection(error) and from_rpc(error).reason not in _ASK_ANOTHER:
                    raise
                problem = error
        if problem is not None and not is_lost_connection(problem):
            raise problem
        raise Unavailable(
            "REPLICA_UNREACHABLE",
            "The replica ended while it was asked.",
            "Try again.",
            {"replica": replicas[0].name},
        )

    def _channel(self, address: str) -> grpc.aio.Channel:
        if address not in self._channels:
            self._channels[address] = grpc.aio.insecure_channel(address, options=OPTIONS)
        return self._channels[address]

    def _prune(self, addresses: set[str]) -> None:
        for address in self._channels.keys() - addresses:
            closing = asyncio.ensure_future(self._channels.pop(address).close(_CLOSE_GRACE_SECONDS))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
