"""What a gRPC client sees through the door must be what it would see without it."""

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.gateway.tests.backend import SERVICE, EchoBackend
from services.gateway.tests.conftest import Door
from stellwerk_platform.errors import from_rpc


async def test_unary_call_keeps_bytes_metadata_and_deadline(door: Door, backend: EchoBackend) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    parent = f"00-{trace_id}-b7ad6b7169203331-01"
    call = door.channel.unary_unary(SERVICE + "GetRun")(
        b"\x0a\x03abc",
        metadata=(("authorization", "Bearer k"), ("traceparent", parent), ("x-bin", b"\x00\x01")),
        timeout=40,
    )

    assert await call == b"\x0a\x03abc"
    assert backend.metadata["authorization"] == "Bearer k"
    # The parent is the caller's span, or the gateway's own where this process records spans.
    assert str(backend.metadata["traceparent"]).split("-")[1] == trace_id
    assert backend.metadata["x-bin"] == b"\x00\x01"
    assert backend.time_remaining is not None
    assert 0 < backend.time_remaining < 41
    assert ("stellwerk-initial", "1") in list(await call.initial_metadata())
    trailing = list(await call.trailing_metadata())
    assert ("stellwerk-trailing", "2") in trailing
    assert ("data-bin", b"\x00\xff") in trailing


async def test_error_keeps_code_reason_and_cure(door: Door) -> None:
    for method in ("Missing", "WatchRun"):
        call = door.channel.unary_stream(SERVICE + method)(b"\x0a\x04fail")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            [_ async for _ in call]
        error = from_rpc(caught.value)
        assert (error.reason, error.cure) == ("RUN_NOT_FOUND", "Create it.")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_server_stream(door: Door) -> None:
    call = door.channel.unary_stream(SERVICE + "WatchRun")(b"ab")
    assert [message async for message in call] == [b"ab", b"abab"]
    assert ("stellwerk-trailing", "2") in list(await call.trailing_metadata())


async def test_client_stream_ends_with_the_half_close(door: Door) -> None:
    call = door.channel.stream_unary(SERVICE + "Collect")()
    for part in (b"a", b"b", b"c"):
        await call.write(part)
    await call.done_writing()
    assert await call == b"a,b,c"


async def test_bidirectional_stream_alternates(door: Door) -> None:
    call = door.channel.stream_stream(SERVICE + "Chat")()
    for number in range(100):
        await call.write(b"%d" % number)
        assert await call.read() == b"%d" % number
    await call.done_writing()
    assert await call.read() == b"end"
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_messages_of_fifteen_megabytes_pass(door: Door) -> None:
    options = [("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(door.address, options=options) as channel:
        body = bytes(15 * 1024 * 1024)
        call: Any = channel.unary_unary(SERVICE + "GetRun")
        assert await call(body) == body


@pytest.mark.parametrize("method", ["CancelRun", "Forever"])
async def test_cancellation_reaches_the_backend(door: Door, backend: EchoBackend, method: str) -> None:
    call = door.channel.stream_stream(SERVICE + method)()
    await call.write(b"")
    if method == "Forever":
        assert await call.read() == b"first"
    else:
        await call.done_writing()
        await backend.called.wait()
    call.cancel()
    async with asyncio.timeout(60):
        await backend.cancelled.wait()


async def test_deadline_ends_the_call_at_the_backend(door: Door, backend: EchoBackend) -> None:
    for seconds in (0.3, 3, 30):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await door.channel.unary_unary(SERVICE + "CancelRun")(b"", timeout=seconds)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        # On a slow machine it may end before the backend has it.
        if backend.called.is_set():
            break
    async with asyncio.timeout(60):
        await backend.cancelled.wait()


async def test_a_backend_that_comes_back_within_seconds_is_not_missed(
    door: Door, backend: EchoBackend
) -> None:
    call = door.channel.unary_unary(SERVICE + "GetRun")
    await call(b"1")
    await backend.server.stop(None)
    second = EchoBackend()

    async def return_later() -> None:
        await asyncio.sleep(0.5)
        await second.start(backend.port)

    returning = asyncio.create_task(return_later())
    assert await call(b"2") == b"2"
    await returning
    await second.server.stop(None)


@pytest.mark.parametrize("patience_seconds", [0.5], indirect=True)
@pytest.mark.parametrize("method", ["GetRun", "WatchRun"])
async def test_a_backend_that_is_down_is_named(door: Door, backend: EchoBackend, method: str) -> None:
    await backend.server.stop(None)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [_ async for _ in door.channel.unary_stream(SERVICE + method)(b"")]
    error = from_rpc(caught.value)
    assert (caught.value.code(), error.reason) == (grpc.StatusCode.UNAVAILABLE, "UPSTREAM_UNAVAILABLE")
    assert error.metadata["service"] == "runs"


async def test_a_stopping_gateway_ends_streams_at_once(door: Door, backend: EchoBackend) -> None:
    call = door.channel.stream_stream(SERVICE + "Forever")()
    assert await call.read() == b"first"
    door.forwarder.stop()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert from_rpc(caught.value).reason == "GATEWAY_STOPPING"


async def test_unknown_service_is_unimplemented(door: Door) -> None:
    for method in ("/stellwerk.unknown.v1.S/M", "/other.S/M", "/stellwerk.runs.v2.S/M"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await door.channel.unary_unary(method)(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_reflection_lists_and_describes_every_service(door: Door) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(door.channel)
    wanted = "stellwerk.registry.v1.WorkspaceService"
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=wanted),
    ]
    listed, described = [answer async for answer in stub.ServerReflectionInfo(iter(requests))]
    names = {service.name for service in listed.list_services_response.service}
    assert {
        wanted,
        "stellwerk.compute.v1.AgentService",
        "inference.GRPCInferenceService",
        "opentelemetry.proto.collector.trace.v1.TraceService",
        "grpc.health.v1.Health",
    } <= names
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(body)
        for body in described.file_descriptor_response.file_descriptor_proto
    ]
    assert any(service.name == "WorkspaceService" for file in files for service in file.service)


async def test_health(door: Door) -> None:
    stub = health_pb2_grpc.HealthStub(door.channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
