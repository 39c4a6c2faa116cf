"""Looks at the loads once a second, and at once when a request waits for a deployment without replicas.

Several processes of the service hear the same reports and come to the same decisions; the
first one is applied, and the others find that the deployment is not any more as they saw it.
"""

import asyncio
import logging
import secrets
import time

import nats.errors
from nats.aio.msg import Msg

from stellwerk_inference.autoscale import domain
from stellwerk_inference.autoscale.loads import Loads
from stellwerk_inference.lifecycle import Lifecycle
from stellwerk_inference.store import Store
from stellwerk_platform.bus import Bus
from stellwerk_platform.documents import now
from stellwerk_platform.errors import NotFound
from stellwerk_protos.inference.v1 import endpoints_pb2 as pb
from stellwerk_protos.inference.v1 import loads_pb2

log = logging.getLogger(__name__)
_SUBJECT = "load"
_PERIOD_SECONDS = 1.0


class Autoscaler:
    """Keeps the loads, and moves the replicas of the deployments that have scale settings."""

    def __init__(self, store: Store, lifecycle: Lifecycle, bus: Bus) -> None:
        self.loads = Loads()
        self._store = store
        self._lifecycle = lifecycle
        self._bus = bus
        self._origin = secrets.token_hex(8)
        self._scalers: dict[str, domain.Scaler] = {}
        self._asleep: set[str] = set()
        self._woken = asyncio.Event()

    async def open(self) -> None:
        """Hears what the other processes of this service are told."""
        await self._bus.client.subscribe(self._bus.names.subject(_SUBJECT, "*"), cb=self._hear)

    async def take(self, report: loads_pb2.ReportLoadRequest) -> None:
        """Takes in what a gateway tells this process, and passes it on."""
        self._take(report)
        try:
            subject = self._bus.names.subject(_SUBJECT, self._origin)
            await self._bus.client.publish(subject, report.SerializeToString())
        except (nats.errors.Error, OSError):
            log.debug("A report was not passed on; the next one holds it too", exc_info=True)

    async def _hear(self, message: Msg) -> None:
        if not message.subject.endswith(f".{self._origin}"):
            self._take(loads_pb2.ReportLoadRequest.FromString(message.data))

    def _take(self, report: loads_pb2.ReportLoadRequest) -> None:
        self.loads.report(report)
        if any(load.queued and load.deployment in self._asleep for load in report.loads):
            self._woken.set()

    async def run(self) -> None:
        """Decides for ever."""
        due = time.monotonic()
        while True:
            due = max(due + _PERIOD_SECONDS, time.monotonic())
            await self._wake_until(due)
            self.loads.tick()
            try:
                await self._look()
            except Exception:
                log.warning("The loads are looked at again in a second", exc_info=True)

    async def _wake_until(self, due: float) -> None:
        """Starts first replicas as soon as they are wanted."""
        while (remaining := due - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(remaining):
                    await self._woken.wait()
            except TimeoutError:
                return
            self._woken.clear()
            try:
                await self._wake()
            except Exception:
                log.warning("What has to be woken is looked at again in a second", exc_info=True)
                return

    async def _wake(self) -> None:
        for name in [name for name in self._asleep if self.loads.waiting(name)]:
            self._asleep.discard(name)
            waiting = self.loads.waiting(name)
            seen = domain.Observation(time.monotonic(), waiting, 0.0, 0)
            deployment = await self._store.deployments.get(name)
            if deployment.HasField("scale_settings"):
                minimum = domain.Settings.of(deployment.scale_settings).min_replicas
                await self._apply(deployment, max(minimum, 1), seen)

    async def _look(self) -> None:
        deployments = await self._store.scaled_deployments()
        self._asleep = {item.name for item in deployments if not item.replica_count}
        self._scalers = {item.name: self._scaler(item) for item in deployments}
        if not self.loads.gateways():
            return  # nobody knows the load, which is not the same as none
        for deployment in deployments:
            second = self.loads.last(deployment.name)
            seen = domain.Observation(
                time.monotonic(),
                second.in_flight + second.queued,
                second.queue_seconds,
                deployment.ready_replica_count,
            )
            count = self._scalers[deployment.name].decide(deployment.replica_count, seen)
            if count != deployment.replica_count:
                await self._apply(deployment, count, seen)

    def _scaler(self, deployment: pb.Deployment) -> domain.Scaler:
        settings = domain.Settings.of(deployment.scale_settings)
        known = self._scalers.get(deployment.name)
        return known if known is not None and known.settings == settings else domain.Scaler(settings)

    async def _apply(self, deployment: pb.Deployment, count: int, seen: domain.Observation) -> None:
        before, gateways = deployment.replica_count, self.loads.gateways()
        try:
            await self._lifecycle.scale(
                deployment.name, lambda d: domain.apply(d, before, count, seen, gateways, now())
            )
        except NotFound:
            return  # a database that is no more
