"""The table of routes, kept up to date by `inference` and kept as it is while that is down."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence

import grpc

from stellwerk_gateway.scoring.balance import Balancer
from stellwerk_platform.errors import NotFound, PlatformError, Unavailable
from stellwerk_platform.grpc_client import Credentials
from stellwerk_protos.inference.v1 import endpoints_pb2 as pb
from stellwerk_protos.inference.v1 import endpoints_pb2_grpc

log = logging.getLogger(__name__)
_FIRST_DELAY_SECONDS, _LONGEST_DELAY_SECONDS = 0.1, 2.0
# A deployment can be known to be ready a moment before its route is here; a request waits that long.
_PATIENCE_SECONDS = 0.5


class RouteTable:
    """Endpoints and whose turn it is at each."""

    def __init__(self, patience_seconds: float = _PATIENCE_SECONDS) -> None:
        self._patience_seconds = patience_seconds
        self._balancers: dict[str, Balancer] = {}
        self._loaded = False
        self._changed = asyncio.Event()
        self._listeners: list[Callable[[set[str]], None]] = []

    def on_change(self, listener: Callable[[set[str]], None]) -> None:
        """Calls `listener` with the gRPC addresses that are left after each change."""
        self._listeners.append(listener)

    def replace(self, routes: Iterable[pb.Route]) -> None:
        """Takes over the whole table."""
        routes = list(routes)
        self._balancers = {
            route.endpoint: self._balancers.get(route.endpoint, Balancer()) for route in routes
        }
        for route in routes:
            self._balancers[route.endpoint].update(route.targets)
        self._loaded = True
        self._changed.set()
        self._changed = asyncio.Event()
        addresses = {r.grpc_address for route in routes for target in route.targets for r in target.replicas}
        for listener in self._listeners:
            listener(addresses)

    async def next(self, endpoint: str) -> Sequence[pb.Replica]:
        """The replicas to ask, in turn; raises `NotFound`, or `Unavailable` when none is ready."""
        if replicas := self._find(endpoint):
            return replicas
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience_seconds):
                while not (replicas := self._find(endpoint)):
                    await self._changed.wait()
        if replicas:
            return replicas
        raise self._problem(endpoint)

    def _find(self, endpoint: str) -> Sequence[pb.Replica]:
        balancer = self._balancers.get(endpoint)
        return balancer.next() if balancer is not None else ()

    def _problem(self, endpoint: str) -> PlatformError:
        if not self._loaded:
            return Unavailable(
                "ROUTES_NOT_LOADED", "The gateway does not know the endpoints yet.", "Try again in a moment."
            )
        if endpoint in self._balancers:
            return Unavailable(
                "NO_READY_REPLICA",
                f"No replica of {endpoint} is ready.",
                "Wait for its deployment, or see its state: `stellwerk deployment list`.",
            )
        return NotFound("ENDPOINT_NOT_FOUND", f"There is no endpoint {endpoint}.", "List the endpoints.")


async def follow(table: RouteTable, channel: grpc.aio.Channel, credentials: Credentials) -> None:
    """Keeps the table up to date for ever."""
    stub = endpoints_pb2_grpc.EndpointServiceStub(channel)
    delay = _FIRST_DELAY_SECONDS
    while True:
        try:
            metadata = (("authorization", f"Bearer {await credentials.token()}"),)
            async for answer in stub.WatchRoutes(pb.WatchRoutesRequest(), metadata=metadata):
                table.replace(answer.routes)
                delay = _FIRST_DELAY_SECONDS
        except (grpc.aio.AioRpcError, PlatformError) as error:
            what = error.details() if isinstance(error, grpc.aio.AioRpcError) else error.message
            log.warning("The routes are asked for again in %.1f s: %s", delay, what)
        await asyncio.sleep(delay)
        delay = min(delay * 2, _LONGEST_DELAY_SECONDS)
