"""Tells `inference` what this process counts, once a second, and at once when a deployment has to be woken.

Requests at a time are looked at ten times a second, so that counting them costs a request nothing.
A report that is lost is made good by the next one, for counts are from the start of the process.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict, dataclass

import grpc

from stellwerk_gateway.scoring.deployment import Deployment
from stellwerk_gateway.scoring.routes import RouteTable
from stellwerk_gateway.scoring.statistics import PROCESS
from stellwerk_platform import names
from stellwerk_platform.errors import PlatformError
from stellwerk_protos.inference.v1 import loads_pb2 as pb

log = logging.getLogger(__name__)
Send = Callable[[pb.ReportLoadRequest], Awaitable[object]]
_LOOK_SECONDS = 0.1
_LOOKS = 10
_MAX_LOADS = 5_000
_MAX_USAGES = 100
_REFUSED = 429
# A deployment that a wake-up was sent for a moment ago is not woken again.
_WOKEN_SECONDS = 0.2


@dataclass
class _Seen:
    """What was looked at since the last report."""

    looks: int = 0
    in_flight: int = 0
    queued: int = 0
    oldest_seconds: float = 0.0
    # Copies count as under way but not as answered, so the sum may fall; what has come may not.
    arrived: int = 0

    def look(self, deployment: Deployment) -> None:
        self.looks += 1
        self.in_flight += deployment.in_flight
        self.queued += deployment.queued
        self.oldest_seconds = max(self.oldest_seconds, deployment.oldest_seconds())

    def load(self, deployment: Deployment) -> pb.GatewayLoad:
        counters = deployment.counters
        answered = sum(counters.codes.values())
        self.arrived = max(self.arrived, answered + deployment.in_flight + deployment.queued)
        looks = self.looks or 1
        return pb.GatewayLoad(
            deployment=deployment.name,
            arrived=self.arrived,
            answered=answered,
            failed=sum(number for code, number in counters.codes.items() if code >= 500),
            refused=counters.codes.get(_REFUSED, 0),
            buckets=counters.buckets,
            in_flight=self.in_flight / looks,
            queued=self.queued / looks,
            queue_ms=round(self.oldest_seconds * 1000),
            usages=[
                pb.ReplicaUsage(replica=names.id_of(replica.name), **asdict(replica.usage))
                for replica in deployment.replicas[:_MAX_USAGES]
            ],
            cold_starts=counters.cold_starts,
            cold_start_ms=round(counters.cold_start_seconds * 1000),
        )


class LoadReporter:
    """Looks, and reports."""

    def __init__(self, table: RouteTable, send: Send) -> None:
        self._table = table
        self._send = send
        self._seen: dict[Deployment, _Seen] = {}
        self._sleeping: dict[Deployment, float] = {}
        self._woken = asyncio.Event()
        self._sending: asyncio.Task[None] | None = None
        table.on_wake(self._wake)

    def _wake(self, deployment: Deployment) -> None:
        """A request waits for a deployment that has no replica."""
        if time.monotonic() - self._sleeping.get(deployment, 0.0) > _WOKEN_SECONDS:
            self._sleeping[deployment] = time.monotonic()
            self._woken.set()

    async def run(self) -> None:
        """Reports for ever."""
        while True:
            for _ in range(_LOOKS):
                self._look()
                await self._pause()
            self._report()

    def _look(self) -> None:
        known = list(self._deployments())
        self._seen = {deployment: self._seen.get(deployment) or _Seen() for deployment in known}
        for deployment, seen in self._seen.items():
            seen.look(deployment)

    def _deployments(self) -> Iterable[Deployment]:
        for endpoint in self._table.endpoints.values():
            yield from endpoint.deployments.values()

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(_LOOK_SECONDS):
                await self._woken.wait()
        except TimeoutError:
            return
        self._woken.clear()
        waiting = [deployment for deployment in self._sleeping if deployment.is_asleep and deployment.queued]
        self._sleeping = {deployment: self._sleeping[deployment] for deployment in waiting}
        loads = []
        for deployment in waiting:
            seen = _Seen(arrived=self._seen[deployment].arrived if deployment in self._seen else 0)
            seen.look(deployment)
            loads.append(seen.load(deployment))
        await self._tell(loads)

    def _report(self) -> None:
        loads = [seen.load(deployment) for deployment, seen in list(self._seen.items())[:_MAX_LOADS]]
        self._seen = {deployment: _Seen(arrived=seen.arrived) for deployment, seen in self._seen.items()}
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._tell(loads))

    async def _tell(self, loads: Iterable[pb.GatewayLoad]) -> None:
        try:
            await self._send(pb.ReportLoadRequest(process=PROCESS, loads=loads))
        except (grpc.aio.AioRpcError, PlatformError) as error:
            log.debug("A report of the load is lost: %s", error)
