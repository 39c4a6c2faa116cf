"""A stream ends with its RPC, wherever it stands, and when its caller may no longer have it."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import pytest

from stellwerk_platform.access import Guard
from stellwerk_platform.auth import Caller, StaticCredentials
from stellwerk_platform.errors import PermissionDenied, Unauthenticated, from_rpc
from stellwerk_platform.grpc_client import connect
from stellwerk_platform.grpc_server import Registration, Server
from stellwerk_platform.memberships import Memberships
from stellwerk_platform.revocations import Revocations
from stellwerk_platform.streams import Stream, Streams
from stellwerk_protos.secrets.v1 import tokens_pb2
from stellwerk_protos.telemetry.v1 import telemetry_pb2 as pb
from stellwerk_protos.telemetry.v1 import telemetry_pb2_grpc


class Endless(telemetry_pb2_grpc.TelemetryServiceServicer):
    """Sends without end, or waits without end."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    async def WatchEvents(self, request: pb.WatchEventsRequest, context: Any) -> AsyncIterator[pb.Event]:
        try:
            while True:
                yield pb.Event(cloud_event="x" * 10_000)
                if request.start_sequence:
                    await asyncio.Event().wait()
        finally:
            self.ended.set()

    async def GetTrace(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    Explain = ListEvents = ListDeadLetters = ReplayDeadLetter = GetTrace


@dataclass
class Doors:
    """A server, and what decides about its callers: the roles, the keys, and what was revoked."""

    stub: "telemetry_pb2_grpc.TelemetryServiceAsyncStub"
    servicer: Endless
    memberships: Memberships
    revocations: Revocations
    roles: dict[str, str] = field(default_factory=dict)
    life_seconds: float = 60.0
    keys_are_good: bool = True

    async def role(self, user: str, workspace: str) -> str:
        return self.roles.get(user, "")

    async def verify(self, token: str) -> Caller:
        caller = Caller("users/alice", "User", time.time() + self.life_seconds, key="users/alice/keys/a")
        self.revocations.check(replace(caller, issue_time=1.0))
        if not self.keys_are_good:
            raise Unauthenticated("TOKEN_EXPIRED", "It has expired.")
        return caller

    async def watch(self, waiting: int = 1) -> Any:
        """A stream whose first event has come."""
        call = self.stub.WatchEvents(pb.WatchEventsRequest(parent="workspaces/demo", start_sequence=waiting))
        await anext(aiter(call))
        return call


async def _none() -> list[tokens_pb2.Revocation]:
    return []


@pytest.fixture
async def doors() -> AsyncIterator[Doors]:
    revocations = Revocations(_none)
    other: Any = None
    found = Doors(other, Endless(), other, revocations, {"users/alice": "Reader"})
    found.memberships = Memberships(found)
    registration = Registration(
        found.servicer,
        telemetry_pb2_grpc.add_TelemetryServiceServicer_to_server,
        pb.DESCRIPTOR.services_by_name["TelemetryService"],
    )
    server = Server("127.0.0.1:0", Guard(found.verify, found.memberships, revocations), [registration])
    await server.start()
    async with connect(f"127.0.0.1:{server.port}", StaticCredentials("key")) as channel:
        found.stub = telemetry_pb2_grpc.TelemetryServiceStub(channel)
        yield found
    await server.stop()


async def ended(call: Any) -> str:
    """The reason with which a stream ends."""

    async def read() -> None:
        async for _ in call:
            pass

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(read(), 60)
    return from_rpc(caught.value).reason


@pytest.mark.parametrize("waiting", [0, 1], ids=["while it sends", "while it waits"])
async def test_a_stream_ends_when_its_client_goes(
    doors: Doors, waiting: int, caplog: pytest.LogCaptureFixture
) -> None:
    call = await doors.watch(waiting)
    call.cancel()
    async with asyncio.timeout(60):
        await doors.servicer.ended.wait()
    # The services of other tests are in this process too, and may say that they wait for something.
    servers = ("asyncio", "grpc", "stellwerk_platform.grpc_server", "stellwerk_platform.streams")
    assert not [record for record in caplog.records if record.name.startswith(servers)]


@pytest.mark.parametrize("waiting", [0, 1], ids=["while it sends", "while it waits"])
async def test_a_stream_ends_when_its_caller_is_no_member_any_more(doors: Doors, waiting: int) -> None:
    call = await doors.watch(waiting)
    doors.memberships.forget("users/bob", "workspaces/demo")
    doors.roles.clear()
    doors.memberships.forget("users/alice", "workspaces/demo")
    assert await ended(call) == "PERMISSION_DENIED"
    async with asyncio.timeout(60):
        await doors.servicer.ended.wait()


async def test_a_stream_outlives_a_change_that_leaves_it_allowed(doors: Doors) -> None:
    call = await doors.watch(0)
    doors.roles["users/alice"] = "Contributor"
    doors.memberships.forget()
    async with asyncio.timeout(60):
        while await doors.memberships.role("users/alice", "workspaces/demo") != "Contributor":
            await anext(aiter(call))
        for _ in range(3):
            await anext(aiter(call))
    call.cancel()


@pytest.mark.parametrize("subject", ["users/alice", "users/alice/keys/a"])
async def test_a_stream_ends_when_key_or_person_is_revoked(doors: Doors, subject: str) -> None:
    call = await doors.watch()
    revocation = tokens_pb2.Revocation(subject=subject)
    revocation.before_time.GetCurrentTime()
    doors.revocations.add(revocation)
    assert await ended(call) == "TOKEN_REVOKED"


async def test_a_stream_ends_with_its_token(doors: Doors) -> None:
    doors.life_seconds = 0.5
    call = await doors.watch()
    doors.keys_are_good = False
    assert await ended(call) == "TOKEN_EXPIRED"


async def test_a_stream_lives_as_long_as_its_key(doors: Doors) -> None:
    doors.life_seconds = 0.05
    call = await doors.watch(0)
    async with asyncio.timeout(60):
        asked = time.time()
        while time.time() < asked + 0.5:
            await anext(aiter(call))
    call.cancel()


async def test_a_change_that_comes_while_a_stream_is_let_in_ends_it() -> None:
    async def refuse(stream: Stream) -> Caller:
        raise PermissionDenied("PERMISSION_DENIED", "No.")

    streams = Streams(refuse)
    seen: list[Stream] = []
    caller = Caller("users/mia", "User", time.time() + 3_600)

    async def call() -> None:
        with streams.open() as stream:
            seen.append(stream)
            # Its role was asked for before, and the answer has been overtaken.
            streams.changed(lambda changed: changed.subject == caller.subject)
            streams.admitted(caller, (("authorization", "Bearer t"),), "event.read", None)
            await asyncio.Event().wait()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(call())
    assert isinstance(seen[0].error, PermissionDenied)
