"""The journal as it is listed and watched, and dead letters."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from services.telemetry.tests.support import EMPTY, Telemetry, reason_of, until
from stellwerk_launcher.testing import Servers
from stellwerk_platform.errors import from_rpc
from stellwerk_platform.journal import Event, Fact, entry
from stellwerk_protos.registry.v1 import workspaces_pb2
from stellwerk_protos.telemetry.v1 import telemetry_pb2 as pb
from stellwerk_telemetry.events.domain import check_selection


async def listed(telemetry: Telemetry, count: int, **fields: Any) -> list[pb.Event]:
    """All events of a query, once there are so many."""

    async def probe() -> list[pb.Event] | None:
        events: list[pb.Event] = []
        token = ""
        while True:
            answer = await stub.ListEvents(pb.ListEventsRequest(page_size=7, page_token=token, **fields))
            events += answer.events
            token = answer.next_page_token
            if not token:
                break
        return events if len(events) >= count else None

    # Nobody but a service reads all workspaces at once.
    everywhere = fields["parent"] == "workspaces/-"
    async with telemetry.service_stub() if everywhere else telemetry.stub() as stub:
        return await until(probe)


def ids(events: list[pb.Event]) -> list[str]:
    return [json.loads(event.cloud_event)["id"] for event in events]


async def test_events_are_listed_in_order_by_pages(telemetry: Telemetry) -> None:
    published = await telemetry.publish("listed", 20)
    await telemetry.publish("listed-too")
    events = await listed(telemetry, 20, parent="workspaces/listed")
    assert ids(events) == published
    assert [event.sequence for event in events] == sorted(event.sequence for event in events)
    assert {event.type for event in events} == {"stellwerk.telemetry.workspace.tested.v1"}
    assert ids(await listed(telemetry, 20, parent="workspaces/-", resource="workspaces/listed")) == published
    assert ids(await listed(telemetry, 20, parent="workspaces/listed", newest_first=True)) == published[::-1]


async def test_events_are_listed_from_a_sequence_or_a_time_on(telemetry: Telemetry) -> None:
    before = await telemetry.publish("since", 5)
    last = (await listed(telemetry, 5, parent="workspaces/since"))[-1].sequence
    moment = Timestamp()
    moment.GetCurrentTime()
    after = await telemetry.publish("since", 9)
    await listed(telemetry, 14, parent="workspaces/since")
    for newest_first, order in ((False, 1), (True, -1)):
        asked = {"parent": "workspaces/since", "newest_first": newest_first}
        assert ids(await listed(telemetry, 9, **asked, start_time=moment)) == after[::order]
        both = (before[-1:] + after)[::order]
        assert ids(await listed(telemetry, 10, **asked, start_sequence=last)) == both


async def test_bad_queries_are_refused(telemetry: Telemetry) -> None:
    async with telemetry.stub() as stub:
        for fields, reason in (
            ({"parent": "workspaces/nowhere"}, "WORKSPACE_NOT_FOUND"),
            ({"parent": "demo"}, "INVALID_NAME"),
            ({"parent": EMPTY, "trace_id": "x"}, "INVALID_TRACE_ID"),
            ({"parent": EMPTY, "page_token": "x"}, "INVALID_PAGE_TOKEN"),
            ({"parent": EMPTY, "page_size": -1}, "INVALID_PAGE_SIZE"),
            ({"parent": EMPTY, "resource": "digits-1"}, "INVALID_NAME"),
            ({"parent": EMPTY, "resource": f"{EMPTY}/runs/"}, "INVALID_NAME"),
            ({"parent": EMPTY, "start_sequence": -1}, "INVALID_SEQUENCE"),
        ):
            assert await reason_of(stub.ListEvents(pb.ListEventsRequest(**fields))) == reason
        assert not (await stub.ListEvents(pb.ListEventsRequest(parent=EMPTY))).events
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            async for _ in stub.WatchEvents(pb.WatchEventsRequest(parent=EMPTY, start_sequence=-1)):
                pass
    assert from_rpc(raised.value).reason == "INVALID_SEQUENCE"


async def take(watch: AsyncIterator[pb.Event], count: int) -> list[pb.Event]:
    events: list[pb.Event] = []
    async with asyncio.timeout(100):
        while len(events) < count:
            events.append(await anext(watch))
    return events


async def test_a_watch_starts_with_the_next_event_and_resumes_anywhere(telemetry: Telemetry) -> None:
    await telemetry.publish("watched", 3)
    async with telemetry.stub() as stub:
        call = stub.WatchEvents(pb.WatchEventsRequest(parent="workspaces/watched"))
        await call.initial_metadata()
        published = await telemetry.publish("watched", 300)
        await telemetry.publish("not-watched", 3)
        events = await take(aiter(call), 300)
        assert ids(events) == published
        call.cancel()
        resumed = stub.WatchEvents(
            pb.WatchEventsRequest(parent="workspaces/watched", start_sequence=events[99].sequence + 1)
        )
        assert ids(await take(aiter(resumed), 200)) == published[100:]
        resumed.cancel()


async def test_a_watch_that_ends_leaves_no_consumer(telemetry: Telemetry) -> None:
    bus = telemetry.bus
    await telemetry.publish("left")

    async def consumers() -> int:
        # Of this watch: those of others, the service's own among them, come and go.
        found = await bus.jetstream.consumers_info(bus.names.stream("JOURNAL"))
        subject = bus.names.subject("journal", "left", ">")
        return sum(info.config.filter_subject == subject for info in found)

    async with telemetry.stub() as stub:
        call = stub.WatchEvents(pb.WatchEventsRequest(parent="workspaces/left", start_sequence=1))
        await take(aiter(call), 1)
        assert await consumers() > 0
        call.cancel()

        async def gone() -> bool:
            return await consumers() == 0

        assert await until(gone)


async def test_a_watch_misses_and_repeats_nothing_over_a_kill_of_nats(
    telemetry: Telemetry, servers: Servers
) -> None:
    async def connected() -> bool:
        return bool(telemetry.bus.client.is_connected)

    published = await telemetry.publish("shaken")
    async with telemetry.stub() as stub:
        call = stub.WatchEvents(pb.WatchEventsRequest(parent="workspaces/shaken", start_sequence=1))
        watch = aiter(call)
        published += await telemetry.publish("shaken", 49, first=2)
        events = await take(watch, 50)
        pid = servers.process.kill("nats")
        await asyncio.to_thread(servers.process.wait_until_back, "nats", pid)
        await until(connected)
        published += await telemetry.publish("shaken", 50, first=51)
        events += await take(watch, 50)
        call.cancel()
    assert ids(events) == published
    assert ids(await listed(telemetry, 100, parent="workspaces/shaken")) == published


async def test_a_dead_letter_is_listed_and_handed_back(telemetry: Telemetry) -> None:
    handled: asyncio.Queue[str] = asyncio.Queue()
    broken = True

    async def handler(event: Event) -> None:
        if event.resource != "workspaces/poisoned":
            return
        if broken:
            raise ValueError("cannot read this")
        handled.put_nowait(event.id)

    consumer = asyncio.create_task(telemetry.bus.consume("poisoned", ["telemetry.workspace.tested"], handler))
    (event_id,) = await telemetry.publish("poisoned")

    async def dead() -> pb.DeadLetter | None:
        letters = (await stub.ListDeadLetters(pb.ListDeadLettersRequest())).dead_letters
        return letters[0] if letters else None

    async with telemetry.stub() as stub, asyncio.timeout(60):
        letter = await until(dead)
        assert json.loads(letter.cloud_event)["id"] == event_id
        assert (letter.consumer, letter.error) == ("poisoned", "ValueError: cannot read this")
        assert letter.HasField("time")
        broken = False
        await stub.ReplayDeadLetter(pb.ReplayDeadLetterRequest(sequence=letter.sequence))
        assert await handled.get() == event_id
        assert await dead() is None
        again = stub.ReplayDeadLetter(pb.ReplayDeadLetterRequest(sequence=letter.sequence))
        assert await reason_of(again) == "DEAD_LETTER_NOT_FOUND"
    consumer.cancel()
    await asyncio.gather(consumer, return_exceptions=True)


async def test_large_events_are_listed_in_answers_that_a_client_can_take(telemetry: Telemetry) -> None:
    for revision in (1, 2, 3):
        resource = workspaces_pb2.Workspace(
            name="workspaces/large", revision=revision, description="x" * 6 * 1024 * 1024
        )
        made = entry(telemetry.bus.names.namespace, "registry", resource, Fact("tested", "TEST"))
        await telemetry.bus.publish(made.subject, made.body, {"Nats-Msg-Id": made.id})
    sequences: list[int] = []

    async def probe() -> bool:
        answer = await stub.ListEvents(pb.ListEventsRequest(parent="workspaces/-"))
        sequences[:] = []
        while True:
            sequences.extend(e.sequence for e in answer.events if e.resource == "workspaces/large")
            if not answer.next_page_token:
                return len(sequences) == 3
            answer = await stub.ListEvents(
                pb.ListEventsRequest(parent="workspaces/-", page_token=answer.next_page_token)
            )

    async with telemetry.service_stub() as stub:
        await until(probe)
    assert sequences == sorted(sequences)


async def test_a_watch_begins_at_a_time_and_shows_what_is_wanted(telemetry: Telemetry) -> None:
    await telemetry.publish("picked", 2)
    await asyncio.sleep(0.01)
    moment = Timestamp()
    moment.GetCurrentTime()
    await telemetry.publish("picked", 2, first=3)
    async with telemetry.stub() as stub:
        for fields, revisions in (
            ({"start_time": moment}, [3, 4]),
            ({"start_sequence": 1, "type": "stellwerk.telemetry.*.tested.v1"}, [1, 2, 3, 4]),
            ({"start_sequence": 1, "resource": "workspaces/picked"}, [1, 2, 3, 4]),
        ):
            call: Any = stub.WatchEvents(pb.WatchEventsRequest(parent="workspaces/picked", **fields))
            found = [json.loads((await call.read()).cloud_event) for _ in revisions]
            assert [event["data"]["revision"] for event in found] == revisions
            call.cancel()


@pytest.mark.parametrize(
    ("pattern", "resource", "wanted"),
    [
        ("", "", True),
        ("stellwerk.runs.*", "", True),
        ("*.created.v1", "", True),
        ("stellwerk.*.run.*.v1", "workspaces/demo/runs/fox", True),
        ("*" * 300, "workspaces/demo", True),
        ("stellwerk.runs", "", False),
        ("*.run.created.v1.v1", "", False),
        ("stellwerk.runs.run.created.v1.*v1", "", False),
        ("", "workspaces/demo/runs/fo", False),
    ],
)
def test_what_is_wanted(pattern: str, resource: str, wanted: bool) -> None:
    event = pb.Event(type="stellwerk.runs.run.created.v1", resource="workspaces/demo/runs/fox")
    assert check_selection(pattern, resource)(event) is wanted
