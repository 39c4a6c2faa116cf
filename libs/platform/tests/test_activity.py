"""What was refused reaches the stream ACTIVITY: a few each, the rest counted."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from stellwerk_platform import activity
from stellwerk_platform.bus import Bus
from stellwerk_platform.errors import PermissionDenied

REFUSED = PermissionDenied("PERMISSION_DENIED", "users/eve may not run.read.")


@asynccontextmanager
async def publishing(bus: Bus, reporter: activity.Reporter) -> AsyncIterator[Any]:
    """A subscription to all reports, while they are published."""
    subscription = await bus.client.subscribe(bus.names.subject("activity", ">"))
    task = asyncio.create_task(reporter.run(bus))
    try:
        async with asyncio.timeout(120):
            yield subscription
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def everything(bus: Bus) -> list[Any]:
    """What the stream holds, in order."""
    stream = bus.names.stream("ACTIVITY")
    state = (await bus.jetstream.stream_info(stream)).state
    return [
        await bus.jetstream.get_msg(stream, number) for number in range(state.first_seq, state.last_seq + 1)
    ]


async def test_a_refusal_is_told_with_who_what_and_where_from(bus: Bus) -> None:
    reporter = activity.Reporter("runs")
    activity.use(reporter)
    activity.denied(
        "RunService/GetRun",
        REFUSED,
        actor="users/eve",
        resource="workspaces/demo/runs/fox",
        address="10.0.0.7",
    )
    async with publishing(bus, reporter) as subscription:
        message = await subscription.next_msg(timeout=60)
    assert message.subject == bus.names.subject("activity", "demo", "runs")
    told = json.loads(message.data)
    assert told["actor"] == "users/eve"
    assert told["resource"] == "workspaces/demo/runs/fox"
    assert told["address"] == "10.0.0.7"
    assert told["result"] == "ACTIVITY_RESULT_DENIED"
    assert told["reason"] == "PERMISSION_DENIED"
    assert (await bus.jetstream.stream_info(bus.names.stream("ACTIVITY"))).state.messages == 1


async def test_a_flood_is_counted_and_hides_nobody(bus: Bus) -> None:
    reporter = activity.Reporter("gateway")
    activity.use(reporter)
    for number in range(20_000):
        activity.denied("Guess", REFUSED, address=f"10.0.{number // 250 % 80}.{number % 250}")
    for _ in range(50):
        activity.denied("Again", REFUSED, actor="users/eve", address="10.0.0.7")
    told: list[dict[str, Any]] = []
    async with publishing(bus, reporter) as subscription:
        while sum(int(item["count"]) for item in told) < 20_050:
            told.append(json.loads((await subscription.next_msg(timeout=60)).data))
    assert len(told) <= 310, "a flood takes bounded room"
    eve = [item for item in told if item.get("actor") == "users/eve"]
    assert [int(item["count"]) for item in eve] == [1, 1, 48]


async def test_hostile_names_are_told_in_a_subject_of_their_own(bus: Bus) -> None:
    reporter = activity.Reporter("runs")
    activity.use(reporter)
    for resource in (
        "workspaces/>/runs/x",
        "workspaces/a b",
        "\x00\n",
        "workspaces/" + "x" * 20_000,
        "\ud800",
    ):
        activity.denied("GetRun", REFUSED, resource=resource, actor=resource)
    async with publishing(bus, reporter) as subscription:
        subjects = {(await subscription.next_msg(timeout=60)).subject for _ in range(5)}
    assert subjects == {bus.names.subject("activity", "_", "runs")}


async def test_the_last_reports_leave_when_the_service_stops(bus: Bus) -> None:
    reporter = activity.Reporter("runs")
    activity.use(reporter)
    async with publishing(bus, reporter) as subscription:
        activity.accessed("GetThis", actor="users/eve", resource="workspaces/demo/secrets/a")
        await subscription.next_msg(timeout=60)
        activity.accessed("GetThat", actor="users/eve", resource="workspaces/demo/secrets/b")
    messages = [json.loads(message.data) for message in await everything(bus)]
    assert [(told["action"], told["result"]) for told in messages] == [
        ("GetThis", "ACTIVITY_RESULT_DONE"),
        ("GetThat", "ACTIVITY_RESULT_DONE"),
    ]
