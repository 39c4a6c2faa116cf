"""What callers and scoring scripts may try at each other through the scoring doors."""

import asyncio
import struct
from collections.abc import AsyncIterator

import aiohttp
import grpc
import pytest

from services.gateway.tests.conftest import OWNER_KEY, Door
from services.gateway.tests.replica import FakeReplica, route
from stellwerk_gateway.scoring.routes import RouteTable

# Types of HTTP/2 frames, and flags (RFC 9113).
_DATA, _HEADERS, _SETTINGS = 0, 1, 4
_END_STREAM, _END_HEADERS = 1, 4


@pytest.fixture
async def replica(table: RouteTable) -> AsyncIterator[FakeReplica]:
    fake = FakeReplica("a")
    await fake.start()
    table.replace([route(blue=(100, [fake]))])
    yield fake
    await fake.stop()


def _frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return struct.pack(">I", len(body))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + body


def _call(*metadata: tuple[bytes, bytes]) -> bytes:
    """An empty ModelInfer as no library of gRPC would write it: it checks what it sends."""
    fields = [
        *((b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"door")),
        (b":path", b"/inference.GRPCInferenceService/ModelInfer"),
        *((b"te", b"trailers"), (b"content-type", b"application/grpc")),
        *metadata,
    ]
    # Literal fields without Huffman coding (RFC 7541, 6.2.2).
    head = b"".join(bytes([0, len(k)]) + k + bytes([len(v)]) + v for k, v in fields)
    return b"".join(
        (
            *(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", _frame(_SETTINGS, 0, 0, b"")),
            _frame(_HEADERS, _END_HEADERS, 1, head),
            _frame(_DATA, _END_STREAM, 1, bytes(5)),
        )
    )


@pytest.mark.parametrize("key", [b"x-custom", b"x-request-id", b"traceparent"])
async def test_grpc_metadata_cannot_bring_a_second_request_along(
    door: Door, replica: FakeReplica, key: bytes
) -> None:
    smuggled = b"1\r\ncontent-length: 0\r\n\r\nGET /smuggled HTTP/1.1\r\nx: "
    host, _, port = door.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    authorization = b"Bearer " + OWNER_KEY.encode()
    writer.write(
        _call((b"authorization", authorization), (b"stellwerk-endpoint", b"demo/digits"), (key, smuggled))
    )
    answer = b""
    async with asyncio.timeout(60):
        while b"grpc-status" not in answer:
            answer += await reader.read(65536)
    writer.close()
    assert b"grpc-status\x01%d" % grpc.StatusCode.INVALID_ARGUMENT.value[0] in answer
    assert not replica.arrived


async def test_a_session_is_nothing_for_scripts(web: aiohttp.ClientSession, replica: FakeReplica) -> None:
    headers = {
        "authorization": f"Bearer {OWNER_KEY}",
        "cookie": f"theme=dark; stellwerk_session={OWNER_KEY}; __Host-stellwerk_session=x; lang=de",
    }
    async with web.post("/endpoints/demo/digits/score", data="{}", headers=headers) as response:
        assert response.status == 200
        assert response.headers.getall("set-cookie") == ["seen=1; Path=/"]
    assert replica.requests[0].headers["cookie"] == "theme=dark; lang=de"
