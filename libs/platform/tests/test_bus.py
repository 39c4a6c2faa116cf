"""Consumers of journal events: order, retries, dead letters and what is handed back."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
from pymongo.errors import AutoReconnect

from stellwerk_launcher.testing import Servers
from stellwerk_platform.bus import Bus
from stellwerk_platform.errors import InvalidArgument, Unavailable
from stellwerk_platform.journal import CONTENT_TYPE, Event, Fact, entry
from stellwerk_protos.registry.v1 import workspaces_pb2


async def publish(bus: Bus, revision: int) -> str:
    """One event of the workspace `demo`, as the relay publishes it; returns its id."""
    resource = workspaces_pb2.Workspace(name="workspaces/demo", revision=revision)
    made = entry(bus.names.namespace, "registry", resource, Fact("tested", "TEST"))
    await bus.publish(made.subject, made.body, {"Nats-Msg-Id": made.id, "Content-Type": CONTENT_TYPE})
    return made.id


@asynccontextmanager
async def consuming(bus: Bus, handler: Callable[[Event], Awaitable[None]]) -> AsyncIterator[None]:
    task = asyncio.create_task(bus.consume("test-consumer", ["registry.workspace.*"], handler))
    try:
        async with asyncio.timeout(200):
            yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest.mark.parametrize(
    "error",
    [Unavailable("SECRETS_UNAVAILABLE", "not now"), AutoReconnect("connection closed")],
    ids=["another service is away", "MongoDB is away"],
)
async def test_what_is_away_is_waited_for_and_order_is_kept(bus: Bus, error: Exception) -> None:
    handled: asyncio.Queue[int] = asyncio.Queue()
    failures = iter(range(5))

    async def handler(event: Event) -> None:
        if event.revision == 1 and next(failures, None) is not None:
            raise error
        handled.put_nowait(event.revision)

    for revision in (1, 2, 3):
        await publish(bus, revision)
    async with consuming(bus, handler):
        assert [await handled.get() for _ in range(3)] == [1, 2, 3]
    info = await bus.jetstream.stream_info(bus.names.stream("DEADLETTER"))
    assert info.state.messages == 0


async def test_a_poisoned_event_is_put_aside_and_can_be_handed_back(bus: Bus) -> None:
    handled: asyncio.Queue[tuple[int, str]] = asyncio.Queue()
    tries = 0
    repaired = False

    async def handler(event: Event) -> None:
        nonlocal tries
        if event.revision == 1 and not repaired:
            tries += 1
            raise InvalidArgument("POISON", "cannot be read")
        handled.put_nowait((event.revision, event.id))

    first, second = await publish(bus, 1), await publish(bus, 2)
    async with consuming(bus, handler):
        assert await handled.get() == (2, second)
        assert tries == 5
        letter = await bus.jetstream.get_msg(bus.names.stream("DEADLETTER"), 1)
        assert letter.headers["Stellwerk-Consumer"] == "test-consumer"
        assert letter.headers["Stellwerk-Error"] == "InvalidArgument: cannot be read"
        repaired = True
        await bus.publish(bus.names.subject("redelivery", "test-consumer"), letter.data, {})
        assert await handled.get() == (1, first)


async def test_what_is_no_event_at_all_is_put_aside_too(bus: Bus) -> None:
    handled: asyncio.Queue[int] = asyncio.Queue()

    async def handler(event: Event) -> None:
        handled.put_nowait(event.revision)

    subject = bus.names.subject("journal", "demo", "registry", "workspace", "tested")
    await bus.publish(subject, b"rubbish", {})
    await publish(bus, 1)
    async with consuming(bus, handler):
        assert await handled.get() == 1
    letter = await bus.jetstream.get_msg(bus.names.stream("DEADLETTER"), 1)
    assert letter.data == b"rubbish"


async def test_a_slow_handler_keeps_its_event_and_its_order(bus: Bus) -> None:
    """Slower than JetStream waits for an answer; two replicas."""
    handled: list[int] = []
    done = asyncio.Event()

    async def handler(event: Event) -> None:
        if event.revision == 1:
            await asyncio.sleep(7)
        handled.append(event.revision)
        if event.revision == 3:
            done.set()

    for revision in (1, 2, 3):
        await publish(bus, revision)
    async with consuming(bus, handler), consuming(bus, handler):
        await done.wait()
    assert handled == [1, 2, 3]


async def test_what_was_sent_before_a_failure_gives_its_places_back(bus: Bus) -> None:
    """nats-py lets 4,000 be under way; those that are never answered would keep their places for ever."""
    too_large = b"x" * (bus.client.max_payload + 1)
    subject = bus.names.subject("journal", "demo", "registry", "workspace", "tested")
    free = bus.jetstream._publish_async_pending_semaphore
    with pytest.raises(Unavailable):
        await bus.publish_many((subject, body, {}) for body in (b"one", b"two", too_large))
    await asyncio.sleep(0)
    assert free._value >= 3_999


async def test_a_connection_that_is_closed_for_good_is_noticed(servers: Servers, bus: Bus) -> None:
    """nats-py does not count the headers in; the server does, and closes."""
    async with Bus.connect(servers.nats_url, bus.names.namespace, "closed") as other:
        lasts = asyncio.create_task(other.lasts())
        body = b"x" * other.client.max_payload
        await other.client.publish(bus.names.subject("any"), body, headers={"a": "b"})
        async with asyncio.timeout(60):
            with pytest.raises(Unavailable, match=r"(?i)maximum payload"):
                await lasts
