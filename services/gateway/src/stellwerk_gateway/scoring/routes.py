"""The table of routes, kept up to date by `inference` and kept as it is while that is down."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence

import grpc

from stellwerk_gateway.scoring.access import Issue, Lock
from stellwerk_gateway.scoring.balance import Copies, Split
from stellwerk_gateway.scoring.counters import Counters
from stellwerk_gateway.scoring.deployment import Deployment
from stellwerk_platform.errors import NotFound, PlatformError, Unavailable
from stellwerk_platform.grpc_client import Credentials
from stellwerk_protos.inference.v1 import endpoints_pb2 as pb
from stellwerk_protos.inference.v1 import endpoints_pb2_grpc

log = logging.getLogger(__name__)
_FIRST_DELAY_SECONDS, _LONGEST_DELAY_SECONDS = 0.1, 2.0
# A deployment can be known to be ready a moment before its route is here; a request waits that long.
_PATIENCE_SECONDS = 0.5


class Endpoint:
    """One endpoint: its deployments and whose turn it is."""

    def __init__(self, name: str, wake: Callable[[Deployment], None], issue: Issue) -> None:
        self.name = name
        self._wake = wake
        self._issue = issue
        self.deployments: dict[str, Deployment] = {}
        self.sticky_header = b""
        self.lock = Lock()
        # What no deployment got to see: refused, or for nobody.
        self.refused = Counters()
        self.copies: dict[str, Copies] = {}
        self._split = Split()

    def update(self, route: pb.Route, default_timeout_seconds: float) -> None:
        """Takes over what `inference` says."""
        targets = {target.deployment.rsplit("/", 1)[1]: target for target in route.targets}
        for gone in self.deployments.keys() - targets.keys():
            self.deployments.pop(gone).close()
        for name, target in targets.items():
            if name not in self.deployments:
                self.deployments[name] = Deployment(
                    target.deployment, default_timeout_seconds, self._wake, self._issue
                )
            self.deployments[name].update(target)
        self.lock = Lock(tuple(route.key_digests), route.auth_mode)
        self.sticky_header = route.sticky_header.lower().encode("latin-1")
        self._split.update({name: target.percent for name, target in targets.items()})
        mirrors = {name: target.mirror_percent for name, target in targets.items() if target.mirror_percent}
        self.copies = {name: self.copies.get(name, Copies()) for name in mirrors}
        for name, percent in mirrors.items():
            self.copies[name].percent = percent

    def choose(self, wanted: str = "", sticky: bytes = b"") -> Deployment | None:
        """The deployment that answers; None if none can, now or soon.

        `wanted` names one, whatever its share; raises `NotFound` if there is none of that name.
        """
        if wanted:
            return self._named(wanted)
        shares = self._split.shares()
        able: Sequence[str] = [name for name in shares if self.deployments[name].is_fit]
        if not able:
            able = [name for name in shares if self.deployments[name].may_come]
        if not able:
            return None
        return self.deployments[self._split.sticky(able, sticky) if sticky else self._split.next(able)]

    def mirrors(self, answering: Deployment) -> list[Deployment]:
        """The deployments that get a copy of this request."""
        due = (name for name, copies in self.copies.items() if name != answering.id and copies.due())
        return [self.deployments[name] for name in due]

    def none_ready(self) -> Unavailable:
        """The error while nobody can answer."""
        return Unavailable(
            "NO_READY_REPLICA",
            f"No replica of {self.name} is ready.",
            "Wait for its deployment, or see its state: `stellwerk deployment list`.",
        )

    def _named(self, wanted: str) -> Deployment:
        deployment = self.deployments.get(wanted)
        if deployment is None:
            raise NotFound(
                "DEPLOYMENT_NOT_FOUND",
                f"{self.name} has no deployment {wanted[:80]!r} that is ready.",
                "See `stellwerk deployment list`, or leave the header out.",
            )
        return deployment


class RouteTable:
    """All endpoints by name; `issue` gives the token to show the scorers of one."""

    def __init__(
        self,
        issue: Issue,
        patience_seconds: float = _PATIENCE_SECONDS,
        default_timeout_seconds: float = 65.0,
    ) -> None:
        self.endpoints: dict[str, Endpoint] = {}
        self._issue = issue
        self._patience_seconds = patience_seconds
        self._default_timeout_seconds = default_timeout_seconds
        self._loaded = False
        self._changed = asyncio.Event()
        self._lock_listeners: list[Callable[[], None]] = []
        self._wakers: list[Callable[[Deployment], None]] = []

    def on_lock_change(self, listener: Callable[[], None]) -> None:
        """Calls this when what opens an endpoint has changed: for who remembers whom it let in."""
        self._lock_listeners.append(listener)

    def on_wake(self, wake: Callable[[Deployment], None]) -> None:
        """Calls this when a request waits for a deployment that sleeps."""
        self._wakers.append(wake)

    def _wake(self, deployment: Deployment) -> None:
        for wake in self._wakers:
            wake(deployment)

    def lock(self, endpoint: str) -> Lock:
        """What opens an endpoint."""
        found = self.endpoints.get(endpoint)
        return found.lock if found is not None else Lock()

    def check_loaded(self) -> None:
        """Raises `Unavailable` before `inference` has told the routes."""
        if not self._loaded:
            raise Unavailable(
                "ROUTES_NOT_LOADED", "The gateway does not know the endpoints yet.", "Try again in a moment."
            )

    async def next_change(self) -> None:
        """Returns when `inference` has told something new."""
        await self._changed.wait()

    def replace(self, routes: Iterable[pb.Route]) -> None:
        """Takes over the whole table."""
        wanted = {route.endpoint: route for route in routes}
        locks = {name: endpoint.lock for name, endpoint in self.endpoints.items()}
        for gone in self.endpoints.keys() - wanted.keys():
            for deployment in self.endpoints.pop(gone).deployments.values():
                deployment.close()
        for name, route in wanted.items():
            if name not in self.endpoints:
                self.endpoints[name] = Endpoint(name, self._wake, self._issue)
            self.endpoints[name].update(route, self._default_timeout_seconds)
        if any(self.lock(name) != lock for name, lock in locks.items()):
            for listener in self._lock_listeners:
                listener()
        self._loaded = True
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait(self, name: str, wanted: str = "", sticky: bytes = b"") -> Deployment:
        """The deployment that answers, waiting a moment for one that is not known yet.

        Raises `NotFound`, or `Unavailable` when none is ready.
        """
        found: Deployment | None = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience_seconds):
                while (found := self._find(name, wanted, sticky)) is None:
                    await self._changed.wait()
        if found is not None:
            return found
        self.check_loaded()
        if name not in self.endpoints:
            raise NotFound(
                "ENDPOINT_NOT_FOUND",
                f"There is no endpoint {name} that answers requests.",
                "List the endpoints (`stellwerk endpoint list`); one of kind batch takes jobs instead.",
            )
        if wanted:
            self.endpoints[name].choose(wanted)
        raise self.endpoints[name].none_ready()

    async def close(self) -> None:
        """Ends everything that runs for the routes."""
        deployments = [item for endpoint in self.endpoints.values() for item in endpoint.deployments.values()]
        await asyncio.gather(*(deployment.stop() for deployment in deployments))

    def _find(self, name: str, wanted: str, sticky: bytes) -> Deployment | None:
        endpoint = self.endpoints.get(name)
        with contextlib.suppress(NotFound):
            return endpoint.choose(wanted, sticky) if endpoint is not None else None
        return None


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
