"""Keeps consumers and connections in step with who may read what.

It looks at once when the journal tells of a change of members, people or subscriptions, and
once in a while by itself. What is looked at is all in the stores and in NATS, so that a second
replica, or a restart in between, does no harm.
"""

import asyncio
import contextlib
import logging
import time

from nats.aio.msg import Msg

from stellwerk_platform import names
from stellwerk_platform.bus import Bus
from stellwerk_platform.errors import PlatformError, Unavailable, as_platform_error
from stellwerk_platform.journal import decode
from stellwerk_protos.secrets.v1.subscriptions_pb2 import Subscription
from stellwerk_secrets.subscriptions import domain
from stellwerk_secrets.subscriptions.access import Access
from stellwerk_secrets.subscriptions.connections import Connection, Connections
from stellwerk_secrets.subscriptions.consumers import Consumers
from stellwerk_secrets.subscriptions.store import Subscriptions

log = logging.getLogger(__name__)
_EVENTS = (
    *("*.registry.member.*", "*.registry.workspace.*"),
    *("_.secrets.user.*", "_.secrets.subscription.*"),
)
_TICK_SECONDS = 1.0
_SWEEP_SECONDS = 30.0
_RETRY_SECONDS = 2.0


class Keeper:
    """Looks after all subscriptions."""

    def __init__(
        self,
        bus: Bus,
        subscriptions: Subscriptions,
        access: Access,
        consumers: Consumers,
        connections: Connections,
    ) -> None:
        self._bus = bus
        self._subscriptions = subscriptions
        self._access = access
        self._consumers = consumers
        self._connections = connections
        self._awake = asyncio.Event()
        self._next_end = float("inf")

    async def follow(self) -> None:
        """Listens to the journal from now on."""
        for subject in _EVENTS:
            await self._bus.client.subscribe(self._bus.names.subject("journal", subject), cb=self._changed)

    async def _changed(self, message: Msg) -> None:
        user = ""
        with contextlib.suppress(ValueError, KeyError, TypeError):
            resource = decode(message.data).resource
            if "/members/" in resource or resource.startswith("users/"):
                user = f"users/{names.id_of(resource) if '/members/' in resource else resource.split('/')[1]}"
        self._access.forget(user)
        self._awake.set()

    async def run(self) -> None:
        """Sweeps for ever."""
        due, lost = 0.0, self._lost_connections()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK_SECONDS):
                    await self._awake.wait()
            if lost != self._lost_connections():
                # What happened meanwhile was not told.
                lost = self._lost_connections()
                self._access.forget()
                self._awake.set()
            if not self._awake.is_set() and time.monotonic() < due and time.time() < self._next_end:
                continue
            self._awake.clear()
            try:
                complete = await self.sweep()
            except Exception as error:
                if as_platform_error(error) is None:
                    log.exception("Subscribers could not be looked after")
                complete = False
            due = time.monotonic() + (_SWEEP_SECONDS if complete else _RETRY_SECONDS)

    def _lost_connections(self) -> int:
        return int(self._bus.client.stats["reconnects"])

    async def sweep(self) -> bool:
        """Makes everything as it has to be; False when somebody could not be asked."""
        # In this order: whoever is connected, or has a consumer, without a subscription had one that ended.
        connections = await self._connections.all()
        infos = await self._consumers.all()
        labels: dict[str, str | None] = {}
        subscriptions = [item for item in await self._subscriptions.not_revoked() if domain.is_living(item)]
        for subscription in subscriptions:
            try:
                workspaces = domain.readable(
                    subscription, await self._access.of(domain.user_of(subscription))
                )
                await self._consumers.fit(subscription, workspaces, infos.pop(subscription.consumer, None))
            except PlatformError as error:
                infos.pop(subscription.consumer, None)
                log.warning("%s: %s", subscription.name, error)
                labels[subscription.consumer] = None
                continue
            labels[subscription.consumer] = domain.label(subscription, workspaces) if workspaces else ""
        for consumer in infos:
            await self._consumers.remove(consumer)
        await self._end(connections, labels)
        self._next_end = min((_end(item) for item in subscriptions), default=float("inf"))
        return None not in labels.values()

    async def _end(self, connections: list[Connection], labels: dict[str, str | None]) -> None:
        """Ends those that were let in for something else than they would be now, and old ones."""
        for connection in connections:
            if not domain.is_consumer(self._bus.names, connection.consumer):
                continue
            label = labels.get(connection.consumer, "")
            changed = label is not None and label != connection.label
            if changed or connection.age_seconds > domain.RENEW_SECONDS:
                await self._connections.end(connection)

    def wake(self) -> None:
        """Has a sweep begin now."""
        self._awake.set()

    async def make(self, subscription: Subscription) -> None:
        """Makes the consumer of a new subscription; should that fail, the next sweep does."""
        try:
            workspaces = domain.readable(subscription, await self._access.of(domain.user_of(subscription)))
            await self._consumers.fit(subscription, workspaces, None)
        except Unavailable as error:
            log.warning("%s gets its consumer later: %s", subscription.name, error)


def _end(subscription: Subscription) -> float:
    expires = subscription.HasField("expire_time")
    return domain.seconds(subscription.expire_time) if expires else float("inf")
