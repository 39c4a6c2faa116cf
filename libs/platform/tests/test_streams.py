"""What answers a stream ends with its RPC, wherever it stands."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from stellwerk_launcher.testing import guard_without_registry
from stellwerk_platform.auth import Caller, StaticCredentials
from stellwerk_platform.grpc_client import connect
from stellwerk_platform.grpc_server import Registration, Server
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


async def _owner(token: str) -> Caller:
    return Caller("users/owner", "User", time.time() + 60)


@pytest.mark.parametrize("waiting", [0, 1], ids=["while it sends", "while it waits"])
async def test_a_stream_ends_when_its_client_goes(waiting: int, caplog: pytest.LogCaptureFixture) -> None:
    servicer = Endless()
    registration = Registration(
        servicer,
        telemetry_pb2_grpc.add_TelemetryServiceServicer_to_server,
        pb.DESCRIPTOR.services_by_name["TelemetryService"],
    )
    server = Server("127.0.0.1:0", guard_without_registry(_owner), [registration])
    await server.start()
    try:
        async with connect(f"127.0.0.1:{server.port}", StaticCredentials("key")) as channel:
            stub = telemetry_pb2_grpc.TelemetryServiceStub(channel)
            call = stub.WatchEvents(pb.WatchEventsRequest(parent="workspaces/demo", start_sequence=waiting))
            await anext(aiter(call))
            call.cancel()
            async with asyncio.timeout(5):
                await servicer.ended.wait()
    finally:
        await server.stop()
    assert not caplog.records
