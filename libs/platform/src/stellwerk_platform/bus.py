"""NATS JetStream: streams, publishing, and the consumers of journal events.

A consumer handles one event at a time, in order, also over several replicas. What
cannot be handled after some tries goes to the dead-letter stream, with the error,
from where `telemetry` can list it and hand it to the consumer once more.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import nats
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DeliverPolicy,
    DiscardPolicy,
    PubAck,
    RetentionPolicy,
    StreamConfig,
)
from opentelemetry.trace import SpanKind

from stellwerk_platform import telemetry
from stellwerk_platform.errors import Unavailable, as_platform_error
from stellwerk_platform.journal import Event, decode

log = logging.getLogger(__name__)
Handler = Callable[[Event], Awaitable[None]]
_ACK_WAIT_SECONDS = 5.0
_IN_PROGRESS_SECONDS = 2.0
# The server counts the headers of a message in; those of a dead letter hold an error text.
_HEADER_BYTES = 8 * 1024
_DUPLICATE_WINDOW_SECONDS = 3_600
_TRIES = 5
_DEFAULT_NAMESPACE = "stellwerk"


@dataclass(frozen=True)
class Names:
    """Streams and subjects of one namespace (docs/interfaces.md)."""

    namespace: str

    def stream(self, name: str) -> str:
        """`JOURNAL`, or `JOURNAL_<namespace>` outside the default namespace."""
        return name if self.namespace == _DEFAULT_NAMESPACE else f"{name}_{self.namespace}"

    def subject(self, *parts: str) -> str:
        """`stellwerk.journal.demo…`"""
        return ".".join((self.namespace, *parts))


@dataclass(frozen=True)
class Rolling:
    """How much a stream holds from which the oldest messages go when newer ones come."""

    messages: int
    message_bytes: int
    age_seconds: float


# At most some 500 MB; `telemetry` has taken it in long before.
_ACTIVITY = Rolling(messages=250_000, message_bytes=8 * 1024, age_seconds=90 * 86_400)


class Bus:
    """One connection to NATS, which comes back by itself."""

    def __init__(
        self, client: Client, namespace: str, closed: asyncio.Event, reconnected: list[Callable[[], None]]
    ) -> None:
        self.client = client
        self._closed = closed
        self._reconnected = reconnected
        self.names = Names(namespace)
        self.jetstream: JetStreamContext = client.jetstream(timeout=5, publish_async_max_pending=4_000)

    @classmethod
    @asynccontextmanager
    async def connect(cls, url: str, namespace: str, name: str, seed: str = "") -> AsyncIterator["Bus"]:
        """Logs in with the nkey of `seed`, else with what `url` says.

        Raises `Unavailable` if the server does not answer at the start.
        """

        closed = asyncio.Event()
        reconnected: list[Callable[[], None]] = []

        async def on_reconnected() -> None:
            for call in reconnected:
                call()

        async def on_error(error: Exception) -> None:
            log.warning("NATS: %s", error or type(error).__name__)

        async def on_closed() -> None:
            closed.set()

        try:
            client = await nats.connect(
                url,
                name=name,
                nkeys_seed_str=seed or None,
                error_cb=on_error,
                closed_cb=on_closed,
                reconnected_cb=on_reconnected,
                allow_reconnect=True,
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.2,
                connect_timeout=5,
                ping_interval=5,
                max_outstanding_pings=2,
                drain_timeout=5,
            )
        except (OSError, nats.errors.Error, TimeoutError) as error:
            raise Unavailable(
                "NATS_UNAVAILABLE",
                f"NATS does not answer: {error}",
                "Check that it runs and STELLWERK_NATS_URL.",
            ) from error
        try:
            yield cls(client, namespace, closed, reconnected)
        finally:
            await client.close()

    def on_reconnect(self, call: Callable[[], None]) -> None:
        """Calls this whenever the connection has come back: core messages may have been missed."""
        self._reconnected.append(call)

    async def lasts(self) -> None:
        """Raises `Unavailable` when the connection has been closed for good.

        After some errors, a refused login among them, the client does not connect again,
        and whoever consumes would wait for ever.
        """
        await self._closed.wait()
        raise Unavailable(
            "NATS_UNAVAILABLE",
            f"NATS has closed the connection: {self.client.last_error or 'no reason given'}",
            "Check its log, and the service's nkey in Vault or user and password in STELLWERK_NATS_URL.",
        )

    @property
    def maximum_body_bytes(self) -> int:
        """What the server takes as one message, less room for headers."""
        return int(self.client.max_payload) - _HEADER_BYTES

    async def ensure_stream(
        self,
        name: str,
        *parts: str,
        work: bool = False,
        max_bytes: int = -1,
        rolling: "Rolling | None" = None,
    ) -> None:
        """Creates or updates a stream for `<namespace>.<parts>.>`.

        With `work`, a message is gone once its one consumer has acknowledged it. A
        full stream refuses new messages, so that nothing stored is ever pushed out,
        unless it is `rolling`.
        """
        config = StreamConfig(
            name=self.names.stream(name),
            subjects=[self.names.subject(*parts, ">")],
            retention=RetentionPolicy.WORK_QUEUE if work else RetentionPolicy.LIMITS,
            discard=DiscardPolicy.NEW if rolling is None else DiscardPolicy.OLD,
            max_bytes=max_bytes,
            max_msgs=-1 if rolling is None else rolling.messages,
            max_msg_size=-1 if rolling is None else rolling.message_bytes,
            max_age=0 if rolling is None else rolling.age_seconds,
            duplicate_window=_DUPLICATE_WINDOW_SECONDS,
            allow_direct=True,
        )
        try:
            await self.jetstream.add_stream(config)
        except nats.js.errors.BadRequestError:
            await self.jetstream.update_stream(config)

    async def publish(self, subject: str, body: bytes, headers: Mapping[str, str]) -> int:
        """The stream sequence under which JetStream has stored the message; raises `Unavailable`."""
        try:
            ack = await self.jetstream.publish(subject, body, headers=dict(headers), timeout=5)
        except (nats.errors.Error, nats.js.errors.Error, TimeoutError) as error:
            raise _not_stored(error) from error
        return int(ack.seq)

    async def publish_many(self, messages: Iterable[tuple[str, bytes, Mapping[str, str]]]) -> None:
        """Returns once all are stored; raises `Unavailable` if any may not be."""
        if not self.client.is_connected:
            # The client would fill its buffer, and publish it all again and again when it is back.
            raise _not_stored(nats.errors.ConnectionReconnectingError())
        acks: list[asyncio.Future[PubAck]] = []
        try:
            for subject, body, headers in messages:
                acks.append(await self.jetstream.publish_async(subject, body, headers=dict(headers)))
            async with asyncio.timeout(10):
                await asyncio.gather(*acks)
        except (nats.errors.Error, nats.js.errors.Error, TimeoutError) as error:
            raise _not_stored(error) from error
        finally:
            # What is not answered yet would keep its place among those that may be under way.
            for ack in acks:
                ack.cancel()

    async def subscribe(
        self,
        stream: str,
        durable: str,
        subjects: Sequence[str],
        *,
        max_ack_pending: int,
        ack_wait_seconds: float = _ACK_WAIT_SECONDS,
        pending_messages: int = 65_536,
    ) -> "nats.aio.subscription.Subscription":
        """A durable push consumer shared by all replicas; new messages come without being asked for."""
        deliver = self.names.subject("deliver", durable)
        config = ConsumerConfig(
            durable_name=durable,
            deliver_subject=deliver,
            deliver_group=durable,
            deliver_policy=DeliverPolicy.ALL,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=ack_wait_seconds,
            max_ack_pending=max_ack_pending,
            filter_subjects=list(subjects),
        )
        subscription = await self.client.subscribe(
            deliver, queue=durable, pending_msgs_limit=pending_messages
        )
        await self.jetstream.add_consumer(self.names.stream(stream), config)
        return subscription

    async def purge(self, stream: str, *parts: str) -> int:
        """Removes the messages with `<namespace>.<parts>.>` from a stream, and says how many there were."""
        name, subject = self.names.stream(stream), self.names.subject(*parts, ">")
        try:
            info = await self.jetstream.stream_info(name, subjects_filter=subject)
            count = int(sum((info.state.subjects or {}).values()))
            if count:
                await self.jetstream.purge_stream(name, subject=subject)
        except nats.js.errors.NotFoundError:
            return 0
        except (nats.errors.Error, nats.js.errors.Error, TimeoutError) as error:
            raise Unavailable(
                "NATS_UNAVAILABLE", f"{name} cannot be emptied now: {error}", "Try again."
            ) from error
        return count

    async def consume(self, durable: str, types: Sequence[str], handler: Handler) -> None:
        """Hands journal events of the given types to `handler`, for ever, at least once, in order.

        `types` are `service.resource.verb` with `*` allowed. A `PlatformError` that is
        retryable is tried again until it works; any other error a few times, then the
        event becomes a dead letter.
        """
        subjects = [self.names.subject("journal", "*", *kind.split(".")) for kind in types]
        async with asyncio.TaskGroup() as tasks:
            for stream, name, filters in (
                ("JOURNAL", durable, subjects),
                ("REDELIVERY", f"{durable}-redelivery", [self.names.subject("redelivery", durable)]),
            ):
                subscription = await self.subscribe(stream, name, filters, max_ack_pending=1)
                tasks.create_task(self._handle_all(subscription, durable, handler))

    async def _handle_all(
        self, subscription: "nats.aio.subscription.Subscription", durable: str, handler: Handler
    ) -> None:
        async for message in subscription.messages:
            async with kept([message]):
                await self._handle(message, durable, handler)

    async def _handle(self, message: Msg, durable: str, handler: Handler) -> None:
        tries, delay = 0, 0.1
        while True:
            try:
                async with asyncio.timeout(60):
                    await _traced(message, durable, handler)
                break
            except Exception as error:
                known = as_platform_error(error)
                if known is not None and known.reason == "WORKSPACE_BEING_DELETED":
                    break  # what it would lead to is being removed
                retryable = known is not None and known.retryable
                tries += not retryable
                log.warning("%s: %.300s (%s)", durable, error, message.subject, exc_info=not retryable)
                if tries >= _TRIES and await self._bury(message, durable, error):
                    break
                await asyncio.sleep(delay)
                delay = min(delay * 2, _ACK_WAIT_SECONDS / 2)
        # Not acknowledged for sure until the server says so; a lost one is only a repetition.
        await message.ack()

    async def _bury(self, message: Msg, durable: str, error: Exception) -> bool:
        """Moves the event to the dead letters; False if that did not work."""
        place = message.metadata
        headers = {
            # Tried again after an answer that was lost, it is the same dead letter.
            "Nats-Msg-Id": f"{durable}:{place.stream}:{place.sequence.stream}",
            "Stellwerk-Consumer": durable,
            "Stellwerk-Error": f"{type(error).__name__}: {error}".replace("\n", " ")[:1_000],
            "Content-Type": "application/cloudevents+json",
        }
        try:
            await self.publish(self.names.subject("deadletter", durable), message.data, headers)
        except Unavailable:
            return False
        log.error("%s gave up on an event; it is a dead letter now: %s", durable, error)
        return True


@asynccontextmanager
async def kept(messages: Sequence[Msg]) -> AsyncIterator[None]:
    """Tells JetStream from time to time that these are being worked on, so that nobody else gets them."""

    async def renew() -> None:
        while True:
            await asyncio.sleep(_IN_PROGRESS_SECONDS)
            with suppress(nats.errors.Error):
                for message in messages:
                    await message.in_progress()

    task = asyncio.create_task(renew())
    try:
        yield
    finally:
        task.cancel()


async def ensure_streams(bus: Bus) -> None:
    """The streams that every service relies on; whoever starts first creates them."""
    await bus.ensure_stream("JOURNAL", "journal")
    await bus.ensure_stream("DEADLETTER", "deadletter")
    await bus.ensure_stream("REDELIVERY", "redelivery", work=True)
    await bus.ensure_stream("ACTIVITY", "activity", rolling=_ACTIVITY)


async def _traced(message: Msg, durable: str, handler: Handler) -> None:
    try:
        event = decode(message.data)
    except (ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"not a journal event: {error}") from error
    with telemetry.tracer.start_as_current_span(
        f"{durable} {event.type}",
        context=telemetry.context_from(event.traceparent),
        kind=SpanKind.CONSUMER,
        attributes={"messaging.system": "nats", "stellwerk.resource": event.resource},
    ):
        await handler(event)


def _not_stored(error: Exception) -> Unavailable:
    return Unavailable(
        "NATS_UNAVAILABLE",
        f"JetStream did not store a message: {error or type(error).__name__}",
        "Try again.",
    )
