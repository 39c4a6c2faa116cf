"""What is far too large, or never ends, is refused early and costs the doors next to nothing."""

import asyncio
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import grpc
import httpx
import psutil
import pytest

_GIGABYTE = 1 << 30
_PIECE = b"x" * (1 << 20)
# What reading some pieces before the refusal may take.
_MOST_BYTES = 192 << 20
_LIST_RUNS = "/stellwerk.runs.v1.RunService/ListRuns"
_ROUTES = {
    "rpc": _LIST_RUNS,
    "public-rpc": "/stellwerk.secrets.v1.TokenService/ExchangeApiKey",
    "score": "/endpoints/demo/none/score",
    "health": "/healthz",
    "nothing": "/no/such/route",
}


@pytest.fixture
def gateway(stack: dict[str, Any]) -> psutil.Process:
    return psutil.Process(next(item["pid"] for item in stack["processes"] if item["name"] == "gateway"))


def _endless() -> Iterator[bytes]:
    for _ in range(_GIGABYTE // len(_PIECE)):
        yield _PIECE


@pytest.mark.parametrize("route", _ROUTES.values(), ids=_ROUTES)
def test_a_gigabyte_to_any_http_route_is_refused(
    stack: dict[str, Any], owner_key: str, gateway: psutil.Process, route: str
) -> None:
    before = gateway.memory_info().rss
    headers = {"authorization": f"Bearer {owner_key}", "content-type": "application/json"}
    try:
        answer = httpx.post(
            stack["gateway_url"] + route, content=_endless(), headers=headers, timeout=30, trust_env=False
        )
        assert answer.status_code < 500, answer.text
        assert answer.is_client_error or route == _ROUTES["health"]
    except httpx.TransportError:
        pass  # closed while the rest was still being sent: httpx does not read the answer then
    assert gateway.memory_info().rss - before < _MOST_BYTES
    assert httpx.get(stack["gateway_url"] + "/healthz", trust_env=False, timeout=60).is_success


async def test_a_gigabyte_to_an_rpc_is_refused(
    stack: dict[str, Any], owner_key: str, gateway: psutil.Process
) -> None:
    before = gateway.memory_info().rss
    options = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(stack["grpc_address"], options=options) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_LIST_RUNS)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(bytes(_GIGABYTE), metadata=(("authorization", f"Bearer {owner_key}"),), timeout=60)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert gateway.memory_info().rss - before < _MOST_BYTES


async def test_connections_that_never_finish_their_request_are_closed(stack: dict[str, Any]) -> None:
    """Slow loris: a hundred connections that send a byte now and then, for as long as they may."""
    door = urlsplit(stack["gateway_url"])
    streams = [await asyncio.open_connection(door.hostname, door.port) for _ in range(100)]
    try:
        for _, writer in streams:
            writer.write(b"POST /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ")
            await writer.drain()
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(stack["gateway_url"] + "/healthz")).is_success

        async def closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                writer.write(b"a")
                try:
                    await writer.drain()
                    if await asyncio.wait_for(reader.read(1024), 1) == b"":
                        return
                except TimeoutError:
                    continue
                except ConnectionError:
                    return

        await asyncio.wait_for(asyncio.gather(*(closed(*stream) for stream in streams)), 60)
    finally:
        for _, writer in streams:
            writer.close()


def test_a_grpc_connection_that_says_nothing_does_no_harm(stack: dict[str, Any]) -> None:
    host, _, port = stack["grpc_address"].rpartition(":")
    idle = [socket.create_connection((host, int(port)), timeout=5) for _ in range(200)]
    try:
        with grpc.insecure_channel(stack["grpc_address"]) as channel:
            grpc.channel_ready_future(channel).result(timeout=20)
    finally:
        for connection in idle:
            connection.close()
