"""Event subscribers with a plain NATS client: what they get, what they do not, and when it ends."""

import asyncio
import gc
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import nats.errors
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from nats.aio.client import Client

from services.secrets.tests.support import Secrets
from stellwerk_launcher.testing import Servers
from stellwerk_platform.bus import Bus
from stellwerk_platform.errors import from_rpc
from stellwerk_platform.journal import CONTENT_TYPE, Fact, entry
from stellwerk_protos.registry.v1 import members_pb2, workspaces_pb2
from stellwerk_protos.secrets.v1 import subscriptions_pb2 as pb
from stellwerk_protos.secrets.v1 import subscriptions_pb2_grpc

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@dataclass
class Members:
    """Stands for `registry`, which needs `secrets` itself; tests/system has both."""

    workspaces: dict[str, set[str]] = field(default_factory=dict)

    async def ListAccess(
        self, request: members_pb2.ListAccessRequest, context: Any
    ) -> members_pb2.ListAccessResponse:
        found = sorted(self.workspaces.get(request.user, ()))
        access = [members_pb2.Access(workspace=name, role=members_pb2.ROLE_READER) for name in found]
        return members_pb2.ListAccessResponse(access=access)

    def serve(self) -> tuple[grpc.aio.Server, int]:
        """A server that knows this one method."""
        server = grpc.aio.server()
        handler = grpc.unary_unary_rpc_method_handler(
            self.ListAccess,
            members_pb2.ListAccessRequest.FromString,
            members_pb2.ListAccessResponse.SerializeToString,
        )
        service = members_pb2.DESCRIPTOR.services_by_name["MemberService"].full_name
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {"ListAccess": handler}),)
        )
        return server, server.add_insecure_port("127.0.0.1:0")


@dataclass
class Platform:
    """The service, the journal, and who is a member."""

    secrets: Secrets
    bus: Bus
    members: Members

    @asynccontextmanager
    async def subscriptions(self, key: str = "") -> AsyncIterator[Any]:
        async with self.secrets.channel(key or self.secrets.owner_key) as channel:
            yield subscriptions_pb2_grpc.SubscriptionServiceStub(channel)

    async def create(self, *workspaces: str, key: str = "", **fields: Any) -> pb.CreateSubscriptionResponse:
        names = [f"workspaces/{name}" for name in workspaces]
        async with self.subscriptions(key) as stub:
            request = pb.CreateSubscriptionRequest(parent="users/me", workspaces=names, **fields)
            made: pb.CreateSubscriptionResponse = await stub.CreateSubscription(request)
        return made

    async def publish(self, workspace: str, revision: int = 1) -> int:
        resource = workspaces_pb2.Workspace(name=f"workspaces/{workspace}", revision=revision)
        made = entry(self.bus.names.namespace, "registry", resource, Fact("tested", "TEST"))
        headers = {"Nats-Msg-Id": made.id, "Content-Type": CONTENT_TYPE}
        return await self.bus.publish(made.subject, made.body, headers)

    async def set_members(self, user: str, *workspaces: str) -> None:
        """Changes what a person may read, and tells the journal as `registry` does."""
        self.members.workspaces[user] = {f"workspaces/{name}" for name in workspaces}
        name = f"workspaces/any/members/{user.removeprefix('users/')}"
        made = entry(
            self.bus.names.namespace,
            "registry",
            members_pb2.Member(name=name, revision=1),
            Fact("set", "TEST"),
        )
        await self.bus.publish(made.subject, made.body, {"Nats-Msg-Id": made.id})


@pytest.fixture(scope="module")
async def platform(servers: Servers) -> AsyncIterator[Platform]:
    members = Members({"users/owner": {"workspaces/demo", "workspaces/more", "workspaces/only"}})
    server, port = members.serve()
    secrets = Secrets(servers, registry_address=f"127.0.0.1:{port}")
    await server.start()
    async with secrets.run(), secrets.bus() as bus:
        yield Platform(secrets, bus, members)
        for stream in ("JOURNAL", "DEADLETTER", "REDELIVERY", "ACTIVITY"):
            await bus.jetstream.delete_stream(bus.names.stream(stream))
    await server.stop(None)
    async with secrets.database() as database:
        await database.client.drop_database(database.raw.name)


@dataclass
class Subscriber:
    """A plain client of NATS."""

    client: Client
    made: pb.CreateSubscriptionResponse
    errors: "asyncio.Queue[str]"

    @property
    def inbox(self) -> bytes:
        return f"_INBOX_{self.made.nats_user}.".encode()

    async def consume(self) -> Any:
        stream, consumer = self.made.stream, self.made.subscription.consumer
        return await self.client.jetstream(prefix="SUBSCRIBER.API").pull_subscribe_bind(
            consumer, stream=stream, inbox_prefix=self.inbox
        )

    async def fetch(self, count: int) -> list[dict[str, Any]]:
        """So many events from the consumer, acknowledged."""
        subscription = await self.consume()
        events = []
        for message in await subscription.fetch(count, timeout=60):
            events.append(json.loads(message.data))
            await message.ack_sync()
        await subscription.unsubscribe()
        return events

    async def refusal(self) -> str:
        async with asyncio.timeout(60):
            return await self.errors.get()


@asynccontextmanager
async def connected(made: pb.CreateSubscriptionResponse, **options: Any) -> AsyncIterator[Subscriber]:
    errors: asyncio.Queue[str] = asyncio.Queue()

    async def on_error(error: Exception) -> None:
        errors.put_nowait(str(error).lower() or type(error).__name__)

    settings: dict[str, Any] = {
        "user": made.nats_user,
        "password": made.nats_password,
        "inbox_prefix": f"_INBOX_{made.nats_user}".encode(),
        "error_cb": on_error,
        "reconnect_time_wait": 0.05,
    }
    client = Client()
    try:
        await client.connect(made.nats_url, **(settings | options))
        yield Subscriber(client, made, errors)
    finally:
        with suppress(nats.errors.Error):
            await client.close()
        # nats-py leaves the sockets of refused attempts to the garbage collector.
        gc.collect()


def revisions(events: list[dict[str, Any]]) -> list[int]:
    return [event["data"]["revision"] for event in events]


async def test_events_come_live_and_from_the_consumer_where_one_left_off(platform: Platform) -> None:
    made = await platform.create("demo")
    async with connected(made) as subscriber:
        live = await subscriber.client.subscribe(made.subjects[0])
        await subscriber.client.flush()
        await platform.publish("demo", 1)
        await platform.publish("other", 2)
        await platform.publish("demo", 3)
        assert revisions([json.loads((await live.next_msg(timeout=60)).data) for _ in range(2)]) == [1, 3]
        assert revisions(await subscriber.fetch(1)) == [1]
        info = await (await subscriber.consume()).consumer_info()
        assert info.num_pending == 1
    await platform.publish("demo", 4)
    async with connected(made) as subscriber:
        # A client that knows nothing of the prefix.
        jetstream = subscriber.client.jetstream()
        consumer = await jetstream.pull_subscribe_bind(
            made.nats_user, stream=made.stream, inbox_prefix=subscriber.inbox
        )
        assert revisions([json.loads(m.data) for m in await consumer.fetch(2, timeout=60)]) == [3, 4]


async def test_the_start_may_lie_in_the_past(platform: Platform) -> None:
    first = await platform.publish("only", 1)
    await asyncio.sleep(0.01)
    moment = Timestamp()
    moment.GetCurrentTime()
    await platform.publish("only", 2)
    async with connected(await platform.create("only", start_sequence=first)) as subscriber:
        assert revisions(await subscriber.fetch(2)) == [1, 2]
    async with connected(await platform.create("only", start_time=moment)) as subscriber:
        assert revisions(await subscriber.fetch(1)) == [2]


@pytest.mark.parametrize(
    "subject", ["{ns}.journal.other.>", "{ns}.journal.>", ">", "_INBOX.>", "{ns}.logs.>"]
)
async def test_other_subjects_are_refused(platform: Platform, subject: str) -> None:
    async with connected(await platform.create("demo")) as subscriber:
        await subscriber.client.subscribe(subject.format(ns=platform.bus.names.namespace))
        assert "permissions violation for subscription" in await subscriber.refusal()
    await clear(platform)


@pytest.mark.parametrize(
    "subject",
    [
        "$JS.API.STREAM.INFO.{stream}",
        "$JS.API.STREAM.MSG.GET.{stream}",
        "$JS.API.DIRECT.GET.{stream}",
        "$JS.API.CONSUMER.CREATE.{stream}",
        "$JS.API.CONSUMER.DURABLE.CREATE.{stream}.{consumer}",
        "$JS.API.CONSUMER.DELETE.{stream}.{consumer}",
        "$JS.API.CONSUMER.MSG.NEXT.{stream}.subscriber-of-somebody-else",
        "$JS.API.STREAM.PURGE.{stream}",
        "$SYS.REQ.SERVER.PING.CONNZ",
        "{ns}.journal.demo.registry.workspace.forged",
    ],
)
async def test_management_and_publishing_are_refused(platform: Platform, subject: str) -> None:
    made = await platform.create("demo")
    async with connected(made) as subscriber:
        await subscriber.client.publish(
            subject.format(ns=platform.bus.names.namespace, stream=made.stream, consumer=made.nats_user),
            b"{}",
        )
        assert "permissions violation for publish" in await subscriber.refusal()
    await clear(platform)


async def clear(platform: Platform) -> None:
    """Revokes what the owner has, so that the next test finds room."""
    async with platform.subscriptions() as stub:
        found = await stub.ListSubscriptions(pb.ListSubscriptionsRequest(parent="users/me"))
        for item in found.subscriptions:
            await stub.RevokeSubscription(pb.RevokeSubscriptionRequest(name=item.name))


async def test_an_answer_cannot_be_sent_into_the_platform(platform: Platform) -> None:
    made = await platform.create("demo")
    for revision in range(3):
        await platform.publish("demo", revision)
    stream = platform.bus.names.stream("JOURNAL")
    before = (await platform.bus.jetstream.stream_info(stream)).state
    async with connected(made) as subscriber:
        for reply in (f"{platform.bus.names.namespace}.journal.demo.a.b.c", f"$JS.API.STREAM.PURGE.{stream}"):
            await subscriber.client.publish(
                f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{made.nats_user}", b'{"batch": 1}', reply=reply
            )
        await subscriber.client.flush()
        # Requests are worked off in order: once a later one is answered, those before are done.
        assert len(await subscriber.fetch(1)) == 1
    after = (await platform.bus.jetstream.stream_info(stream)).state
    assert (after.messages, after.last_seq) == (before.messages, before.last_seq)


async def test_revoked_credentials_end_at_once(platform: Platform) -> None:
    made = await platform.create("demo")
    closed = asyncio.Event()

    async def on_disconnect() -> None:
        closed.set()

    async with connected(made, disconnected_cb=on_disconnect) as subscriber:
        async with platform.subscriptions() as stub:
            await stub.RevokeSubscription(pb.RevokeSubscriptionRequest(name=made.subscription.name))
        async with asyncio.timeout(60):
            await closed.wait()
        while "authorization" not in await subscriber.refusal():
            pass
    with pytest.raises(nats.errors.Error):
        async with connected(made, allow_reconnect=False):
            pass


async def test_a_lost_role_ends_one_workspace_and_not_the_other(platform: Platform) -> None:
    key = await platform.secrets.join("lena")
    await platform.set_members("users/lena", "demo", "more")
    made = await platform.create("demo", "more", key=key)
    again = asyncio.Event()

    async def on_reconnect() -> None:
        again.set()

    for workspace, revision in (("demo", 1), ("more", 2)):
        await platform.publish(workspace, revision)
    async with connected(made, reconnected_cb=on_reconnect) as subscriber:
        live = await subscriber.client.subscribe(made.subjects[0])
        # Delivered, and never acknowledged.
        assert len(await (await subscriber.consume()).fetch(2, timeout=60)) == 2
        await platform.set_members("users/lena", "more")
        async with asyncio.timeout(60):
            await again.wait()
        await platform.publish("demo", 3)
        await platform.publish("more", 4)
        assert revisions(await subscriber.fetch(2)) == [2, 4], "nothing of the lost workspace comes again"
        assert live.pending_msgs == 0
        await platform.set_members("users/lena")
        while "authorization" not in await subscriber.refusal():
            pass


async def test_a_disabled_person_is_out(platform: Platform) -> None:
    key = await platform.secrets.join("otto")
    await platform.set_members("users/otto", "demo")
    made = await platform.create("demo", key=key)
    async with connected(made) as subscriber, platform.secrets.people() as people:
        from stellwerk_protos.secrets.v1 import users_pb2

        await people.DisableUser(users_pb2.DisableUserRequest(name="users/otto"))
        while "authorization" not in await subscriber.refusal():
            pass


async def test_credentials_end_at_their_time(platform: Platform) -> None:
    # Long enough to be used before, on a machine that has much to do.
    for seconds in (2, 10, 60):
        if await used_until_its_end(platform, seconds):
            return
    raise AssertionError("no credentials could be used")


async def used_until_its_end(platform: Platform, seconds: int) -> bool:
    """Connects with credentials that last so long, until they end; False if they had ended before."""
    closed = asyncio.Event()

    async def on_close() -> None:
        closed.set()

    end = Timestamp()
    end.GetCurrentTime()
    end.seconds += seconds
    try:
        made = await platform.create("demo", expire_time=end)
        async with connected(made, closed_cb=on_close, max_reconnect_attempts=1), asyncio.timeout(120):
            await closed.wait()
    except (grpc.aio.AioRpcError, nats.errors.Error):
        return False
    return True


async def test_who_is_connected_goes_on_while_secrets_is_away(servers: Servers, platform: Platform) -> None:
    # A second instance of the service in a namespace of its own, so that it can be stopped.
    secrets = Secrets(servers, registry_address=platform.secrets.registry_address)
    async with secrets.run(), secrets.bus() as bus:
        other = Platform(secrets, bus, platform.members)
        made = await other.create("demo")
        subscriber_context = connected(made)
        subscriber = await subscriber_context.__aenter__()
    try:
        async with secrets.bus() as bus:
            await Platform(secrets, bus, platform.members).publish("demo", 7)
            assert revisions(await subscriber.fetch(1)) == [7]
            for stream in ("JOURNAL", "DEADLETTER", "REDELIVERY", "ACTIVITY"):
                await bus.jetstream.delete_stream(bus.names.stream(stream))
    finally:
        await subscriber_context.__aexit__(None, None, None)
        async with secrets.database() as database:
            await database.client.drop_database(database.raw.name)


async def test_a_wrong_password_is_refused_and_told(platform: Platform) -> None:
    made = await platform.create("demo")
    reports = await platform.bus.client.subscribe(platform.bus.names.subject("activity", ">"))
    for fields in ({"password": "wrong"}, {"password": ""}, {"password": "x" * 1_000}):
        with pytest.raises(nats.errors.Error):
            async with connected(made, allow_reconnect=False, **fields):
                pass
    told = json.loads((await reports.next_msg(timeout=60)).data)
    assert (told["reason"], told["resource"], told["address"]) == (
        "SUBSCRIPTION_INVALID",
        made.subscription.name,
        "127.0.0.1",
    )


async def test_bad_requests_are_refused(platform: Platform) -> None:
    key = await platform.secrets.join("rosa")
    past = Timestamp(seconds=1)
    for workspaces, fields, reason in (
        ((), {}, "INVALID_WORKSPACES"),
        (("a b",), {}, "INVALID_NAME"),
        (("demo", "nowhere"), {}, "PERMISSION_DENIED"),
        (("demo",), {"subscription_id": "../x"}, "INVALID_NAME"),
        (("demo",), {"start_sequence": -1}, "INVALID_SEQUENCE"),
        (("demo",), {"expire_time": past}, "INVALID_TIME"),
        (("demo",), {"display_name": "\n"}, "INVALID_DISPLAY_NAME"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await platform.create(*workspaces, **fields)
        assert from_rpc(caught.value).reason == reason
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await platform.create("demo", key=key)
    assert from_rpc(caught.value).reason == "PERMISSION_DENIED"
    async with platform.subscriptions(key) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListSubscriptions(pb.ListSubscriptionsRequest(parent="users/owner"))
    assert from_rpc(caught.value).reason == "PERMISSION_DENIED"


async def test_the_password_is_nowhere(platform: Platform) -> None:
    made = await platform.create("demo", subscription_id="quiet")
    async with platform.secrets.database() as database:
        document = await database.raw["subscriptions"].find_one({"_id": "users/owner/subscriptions/quiet"})
    assert made.nats_password not in str(document)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await platform.create("demo", subscription_id="quiet")
    assert from_rpc(caught.value).reason == "ALREADY_EXISTS"
