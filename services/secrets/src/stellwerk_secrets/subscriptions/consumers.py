"""The JetStream consumers of subscribers. They make none themselves; each keeps its position here."""

import asyncio
import logging
from dataclasses import replace

import nats.errors
import nats.js.errors
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, ConsumerInfo, DeliverPolicy

from stellwerk_platform.bus import Bus
from stellwerk_platform.errors import Unavailable
from stellwerk_protos.secrets.v1.subscriptions_pb2 import Subscription
from stellwerk_secrets.subscriptions import domain
from stellwerk_secrets.subscriptions.store import Subscriptions

log = logging.getLogger(__name__)
_ERRORS = (nats.errors.Error, nats.js.errors.Error, TimeoutError)
_MAX_ACK_PENDING = 1_000


class Consumers:
    """All consumers of this namespace's subscribers."""

    def __init__(self, bus: Bus, subscriptions: Subscriptions) -> None:
        self._bus = bus
        self._stream = bus.names.stream("JOURNAL")
        self._subscriptions = subscriptions

    async def all(self) -> dict[str, ConsumerInfo]:
        """By name; raises `Unavailable`."""
        found: dict[str, ConsumerInfo] = {}
        offset = 0
        try:
            while page := await self._bus.jetstream.consumers_info(self._stream, offset):
                offset += len(page)
                found |= {item.name: item for item in page if domain.is_consumer(self._bus.names, item.name)}
        except _ERRORS as error:
            raise _unavailable() from error
        return found

    async def fit(self, subscription: Subscription, workspaces: list[str], info: ConsumerInfo | None) -> None:
        """Has the consumer deliver the events of these workspaces and no others.

        One that delivered more before is made anew from where everything was acknowledged:
        else what was delivered and not acknowledged would be delivered again.
        """
        wanted = domain.filters(self._bus.names, workspaces)
        try:
            if info is not None and (before := set(info.config.filter_subjects or [])) != set(wanted):
                if before <= set(wanted):
                    changed = replace(info.config, filter_subjects=wanted)
                    await self._bus.jetstream.add_consumer(self._stream, changed)
                else:
                    acknowledged = info.ack_floor.stream_seq if info.ack_floor is not None else 0
                    await self._subscriptions.move_start(subscription.name, int(acknowledged) + 1)
                    await self.remove(subscription.consumer)
                    info = None
            if info is None:
                await self._make(subscription, wanted)
        except _ERRORS as error:
            raise _unavailable() from error

    async def _make(self, subscription: Subscription, filters: list[str]) -> None:
        config = ConsumerConfig(
            durable_name=subscription.consumer,
            description=subscription.name,
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=await self._subscriptions.start_sequence(subscription.name),
            ack_policy=AckPolicy.EXPLICIT,
            filter_subjects=filters,
            max_ack_pending=_MAX_ACK_PENDING,
        )
        await self._bus.jetstream.add_consumer(self._stream, config)

    async def remove(self, consumer: str) -> None:
        """Ends a consumer, if it is there; raises `Unavailable`."""
        try:
            await self._bus.jetstream.delete_consumer(self._stream, consumer)
        except nats.js.errors.NotFoundError:
            return
        except _ERRORS as error:
            raise _unavailable() from error

    async def tell(self) -> None:
        """Answers subscribers' clients that ask about their consumer, for ever.

        JetStream itself only answers its own account.
        """
        subject = f"{domain.PREFIX}.CONSUMER.INFO.{self._stream}.*"
        subscription = await self._bus.client.subscribe(subject)
        async for message in subscription.messages:
            await self._tell(message)

    async def _tell(self, message: Msg) -> None:
        consumer = message.subject.rsplit(".", 1)[-1]
        if not domain.is_consumer(self._bus.names, consumer):
            return
        try:
            question = f"$JS.API.CONSUMER.INFO.{self._stream}.{consumer}"
            answer = await self._bus.client.request(question, timeout=2)
            await message.respond(answer.data)
        except (*_ERRORS, asyncio.InvalidStateError) as error:
            log.info("%s was not told about: %s", consumer, error or type(error).__name__)


def _unavailable() -> Unavailable:
    return Unavailable("NATS_UNAVAILABLE", "The journal does not answer.", "Try again.")
