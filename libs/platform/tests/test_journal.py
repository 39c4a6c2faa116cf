"""Store, relay and consumers on the real MongoDB and NATS, also when the process dies in between."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from stellwerk_launcher.testing import Servers
from stellwerk_platform import mongo
from stellwerk_platform.bus import Bus
from stellwerk_platform.errors import Aborted, AlreadyExists, InvalidArgument, NotFound, Unavailable
from stellwerk_platform.journal import Event, Fact, Relay, decode
from stellwerk_platform.mongo import Collection, Database
from stellwerk_protos.registry.v1.workspaces_pb2 import Workspace

WRITER = Path(__file__).with_name("journal_writer.py")
FAILPOINTS = (
    "store.resource_written",
    "store.before_commit",
    "store.committed",
    "relay.published",
    "relay.removed",
)


async def opened(database: Database) -> Collection[Workspace]:
    workspaces = Collection(database, "workspaces", Workspace)
    await workspaces.open()
    return workspaces


def described(text: str) -> Callable[[Workspace], Fact]:
    def change(workspace: Workspace) -> Fact:
        workspace.description = text
        return Fact("updated", "TEST")

    return change


async def journal(bus: Bus) -> list[Event]:
    """Everything in the stream, in its order."""
    info = await bus.jetstream.stream_info(bus.names.stream("JOURNAL"))
    messages = [
        await bus.jetstream.get_msg(bus.names.stream("JOURNAL"), sequence)
        for sequence in range(1, info.state.last_seq + 1)
    ]
    return [decode(message.data or b"") for message in messages]


async def test_a_change_and_its_event_are_one(database: Database, bus: Bus) -> None:
    workspaces = await opened(database)
    await workspaces.create(
        Workspace(name="workspaces/a", tags={"k.x": "v"}), Fact("created", "REQUESTED", "why")
    )
    await workspaces.update("workspaces/a", described("new"))
    assert await Relay(database, bus).publish_batch() == 2
    assert await database.pending(10) == []
    first, second = await journal(bus)
    assert (first.type, first.resource, first.revision) == (
        "stellwerk.registry.workspace.created.v1",
        "workspaces/a",
        1,
    )
    assert (first.actor, first.reason) == ("services/registry", {"code": "REQUESTED", "message": "why"})
    loaded = Workspace()
    second.load(loaded)
    assert loaded == await workspaces.get("workspaces/a")


async def test_events_are_structured_cloudevents(database: Database, bus: Bus) -> None:
    workspaces = await opened(database)
    await workspaces.create(Workspace(name="workspaces/a"), Fact("created", "REQUESTED"))
    await Relay(database, bus).publish_batch()
    message = await bus.jetstream.get_msg(bus.names.stream("JOURNAL"), 1)
    assert message.headers is not None
    assert message.headers["Content-Type"] == "application/cloudevents+json"
    event = json.loads(message.data or b"")
    assert event["specversion"] == "1.0"
    assert message.headers["Nats-Msg-Id"] == event["id"]
    assert message.subject == bus.names.subject("journal", "a", "registry", "workspace", "created")


async def test_a_second_relay_publishes_nothing_twice(database: Database, bus: Bus) -> None:
    workspaces = await opened(database)
    for number in range(50):
        await workspaces.create(Workspace(name=f"workspaces/w{number}"), Fact("created", "REQUESTED"))
    pending = await database.pending(100)
    await Relay(database, bus).publish_batch()
    await bus.publish_many((e.subject, e.body, {"Nats-Msg-Id": e.id}) for e in pending)
    assert len(await journal(bus)) == 50


async def test_concurrent_changes_lose_nothing(database: Database) -> None:
    workspaces = await opened(database)
    await workspaces.create(Workspace(name="workspaces/a"), Fact("created", "REQUESTED"))

    def count(workspace: Workspace) -> Fact:
        workspace.description = str(int(workspace.description or 0) + 1)
        return Fact("updated", "TEST")

    await asyncio.gather(*(workspaces.update("workspaces/a", count) for _ in range(20)))
    final = await workspaces.get("workspaces/a")
    assert (final.description, final.revision) == ("20", 21)
    assert len(await database.pending(100)) == 21


async def test_names_are_taken_once_and_requests_can_be_repeated(database: Database) -> None:
    workspaces = await opened(database)
    fact = Fact("created", "REQUESTED")
    await workspaces.create(Workspace(name="workspaces/a"), fact, "request-1")
    repeated = await workspaces.create(Workspace(name="workspaces/other"), fact, "request-1")
    assert repeated.name == "workspaces/a"
    with pytest.raises(AlreadyExists):
        await workspaces.create(Workspace(name="workspaces/a"), fact, "request-2")
    assert len(await database.pending(10)) == 1


async def test_a_lost_update_is_refused(database: Database) -> None:
    workspaces = await opened(database)
    await workspaces.create(Workspace(name="workspaces/a"), Fact("created", "REQUESTED"))
    await workspaces.update("workspaces/a", described("x"), etag="1")
    with pytest.raises(Aborted):
        await workspaces.update("workspaces/a", described("y"), etag="1")
    with pytest.raises(NotFound) as caught:
        await workspaces.get("workspaces/zzz")
    assert caught.value.reason == "WORKSPACE_NOT_FOUND"


@pytest.mark.parametrize(("key", "descending"), [("_id", False), ("create_time", True)])
async def test_pages_show_everything_once(database: Database, key: str, descending: bool) -> None:
    workspaces = await opened(database)
    for number in range(7):
        await workspaces.create(Workspace(name=f"workspaces/w{number}"), Fact("created", "REQUESTED"))
    seen, token = [], ""
    while True:
        items, token = await workspaces.page({}, 3, token, key=key, descending=descending)
        seen += [item.name for item in items]
        if not token:
            break
        # What is deleted meanwhile does not disturb the listing.
        await workspaces.raw.delete_one({"_id": seen[-1]})
    assert sorted(seen, reverse=descending) == seen
    assert len(seen) == 7
    _, token = await workspaces.page({}, 1, "", key=key, descending=descending)
    with pytest.raises(InvalidArgument):
        await workspaces.page({"description": "x"}, 1, token, key=key, descending=descending)


async def test_a_consumer_gets_each_event_in_order(database: Database, bus: Bus) -> None:
    workspaces = await opened(database)
    relay = Relay(database, bus)
    database.on_commit(relay.wake)
    seen: list[int] = []
    done = asyncio.Event()

    async def handle(event: Event) -> None:
        seen.append(event.revision)
        if len(seen) == 10:
            done.set()

    tasks = [
        asyncio.create_task(relay.run()),
        asyncio.create_task(bus.consume("test", ["registry.workspace.*"], handle)),
    ]
    await workspaces.create(Workspace(name="workspaces/a"), Fact("created", "REQUESTED"))
    for number in range(9):
        await workspaces.update("workspaces/a", described(str(number)))
    async with asyncio.timeout(60):
        await done.wait()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert seen == list(range(1, 11))


@pytest.mark.parametrize("failpoint", FAILPOINTS)
@pytest.mark.parametrize("occurrence", [1, 3])
@pytest.mark.faults
async def test_a_killed_writer_or_relay_loses_and_doubles_nothing(
    servers: Servers, database: Database, bus: Bus, namespace: str, failpoint: str, occurrence: int
) -> None:
    """The child dies by SIGKILL at the failpoint; started again it goes on. Every committed revision
    is published once, in order, and nothing else."""
    workspaces = await opened(database)
    environment = {
        **os.environ,
        "TEST_MONGODB_URI": servers.mongodb_uri,
        "TEST_NATS_URL": servers.nats_url,
        "TEST_NAMESPACE": namespace,
    }

    async def write(extra: dict[str, str]) -> int:
        child = await asyncio.create_subprocess_exec(
            sys.executable, str(WRITER), env=environment | extra, stderr=subprocess.DEVNULL
        )
        return await child.wait()

    assert await write({"STELLWERK_FAILPOINT": f"{failpoint}:{occurrence}"}) == -9
    assert await write({}) == 0
    final = await workspaces.all({})
    by_resource: dict[str, list[int]] = {}
    for event in await journal(bus):
        by_resource.setdefault(event.resource, []).append(event.revision)
    assert by_resource == {w.name: list(range(1, w.revision + 1)) for w in final}
    assert {w.description for w in final} == {"5"}


async def test_revisions_are_published_in_order_whatever_the_clocks_say(database: Database, bus: Bus) -> None:
    """Two replicas change a resource in turn, and the clock of one is behind."""
    workspaces = await opened(database)
    await workspaces.create(Workspace(name="workspaces/a"), Fact("created", "REQUESTED"))
    await workspaces.update("workspaces/a", described("new"))
    first = await database.raw["journal_outbox"].find_one({"revision": 1})
    await database.raw["journal_outbox"].delete_one({"revision": 1})
    await database.raw["journal_outbox"].insert_one({**(first or {}), "_id": "f" + first["_id"][1:]})  # type: ignore[index]
    assert [item.revision for item in await database.pending(10)] == [2, 1]
    await Relay(database, bus).publish_batch()
    assert [event.revision for event in await journal(bus)] == [1, 2]


async def test_an_event_that_nats_would_not_take_is_refused_with_its_change(
    database: Database, bus: Bus
) -> None:
    """In the outbox it would hold up all that follow."""
    workspaces = await opened(database)
    database.maximum_event_bytes = bus.maximum_body_bytes
    await workspaces.create(Workspace(name="workspaces/a"), Fact("created", "REQUESTED"))
    with pytest.raises(InvalidArgument) as caught:
        await workspaces.update("workspaces/a", described("x" * bus.client.max_payload))
    assert caught.value.reason == "RESOURCE_TOO_LARGE"
    # The largest that is taken does get through.
    room = bus.maximum_body_bytes - len((await database.pending(1))[0].body) - 100
    await workspaces.update("workspaces/a", described("é" * (room // 2)))
    assert await Relay(database, bus).publish_batch() == 2
    assert [event.revision for event in await journal(bus)] == [1, 2]


async def test_a_page_ends_where_an_answer_would_get_too_large(database: Database) -> None:
    workspaces = await opened(database)
    database.maximum_event_bytes = 8 * 1024 * 1024
    for number in range(5):
        workspace = Workspace(name=f"workspaces/w{number}", description="x" * 3 * 1024 * 1024)
        await workspaces.create(workspace, Fact("created", "REQUESTED"))
    sizes, token = [], "first"
    while token:
        items, token = await workspaces.page({}, 100, "" if token == "first" else token)
        sizes.append(len(items))
    assert sizes == [2, 2, 1]


async def test_a_commit_without_mongodb_fails_within_a_handlers_time(
    namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver would repeat it for two minutes, which made of each waiting event a dead letter."""
    monkeypatch.setattr(mongo, "_SELECTION_MS", 100)
    database = Database("mongodb://127.0.0.1:9", namespace, "registry")
    workspaces = Collection(database, "workspaces", Workspace)
    async with asyncio.timeout(60):
        with pytest.raises(Unavailable) as caught:
            await workspaces.create(Workspace(name="workspaces/a"), Fact("created", "REQUESTED"))
    assert caught.value.reason == "MONGODB_UNAVAILABLE"
    database.close()
