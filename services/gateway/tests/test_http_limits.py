"""What the HTTP door does with requests that are large, slow, odd, or one behind the other."""

import asyncio
import contextlib
import gzip
import io
from collections.abc import AsyncIterator

import aiohttp
import pytest

from services.gateway.tests.conftest import OWNER_KEY
from services.gateway.tests.misbehaving import misbehaving
from services.gateway.tests.replica import ENDPOINT, FakeReplica, route, until
from stellwerk_gateway.scoring import protocol
from stellwerk_gateway.scoring.router import Router
from stellwerk_gateway.scoring.routes import RouteTable

URL = "/endpoints/demo/digits/score"
KEY = {"authorization": f"Bearer {OWNER_KEY}"}
HEAD = f"POST {URL} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {OWNER_KEY}\r\n".encode()


@pytest.fixture
async def replica(table: RouteTable) -> AsyncIterator[FakeReplica]:
    fake = FakeReplica("a")
    await fake.start()
    table.replace([route(blue=(100, [fake]))])
    yield fake
    await fake.stop()


@contextlib.asynccontextmanager
async def connected(
    web: aiohttp.ClientSession,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A bare connection to the door."""
    assert web._base_url is not None
    reader, writer = await asyncio.open_connection("127.0.0.1", web._base_url.port)
    try:
        async with asyncio.timeout(60):
            yield reader, writer
    finally:
        writer.close()


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of one answer."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return int(head.split()[1]), await reader.readexactly(length)


# Sizes


@pytest.mark.parametrize("chunked", [False, True])
async def test_large_bodies_pass_in_pieces(
    web: aiohttp.ClientSession, replica: FakeReplica, router: Router, chunked: bool
) -> None:
    body = bytes(range(250)) * 3_600
    pieces = [body[start : start + 50_000] for start in range(0, len(body), 50_000)]

    async def stream() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    async with web.post(
        URL, data=stream() if chunked else body, headers={**KEY, "content-type": "application/octet-stream"}
    ) as response:
        assert response.status == 500  # the fake cannot decode it
    assert replica.bodies == [body]
    assert router.held_bytes == 0


@pytest.mark.parametrize("chunked", [False, True])
async def test_bodies_that_are_too_large_are_refused_and_their_clients_told(
    web: aiohttp.ClientSession, replica: FakeReplica, router: Router, chunked: bool
) -> None:
    async def stream() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield bytes(50_000)

    async with web.post(
        URL, data=stream() if chunked else io.BytesIO(bytes(1_500_000)), headers=KEY
    ) as response:
        assert (response.status, (await response.json())["reason"]) == (413, "PAYLOAD_TOO_LARGE")
    async with web.post(URL, data="{}", headers=KEY) as response:
        assert response.status == 200
    assert router.held_bytes == 0


async def test_requests_that_wait_have_room_up_to_a_bound(
    web: aiohttp.ClientSession, replica: FakeReplica, router: Router
) -> None:
    replica.gate.clear()

    async def one() -> tuple[int, str]:
        async with web.post(URL, data=b"x" * 9_900, headers=KEY) as response:
            return response.status, response.headers.get("retry-after", "")

    waiting = [asyncio.create_task(one()) for _ in range(60)]
    await until(lambda: router.held_bytes == 60 * 9_900)
    calls = [asyncio.create_task(one()) for _ in range(20)]
    done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    assert next(iter(done)).result() == (429, "1")
    replica.gate.set()
    assert {(await call)[0] for call in waiting} == {200}
    await asyncio.gather(*calls)
    assert router.held_bytes == 0


async def test_a_client_that_does_not_read_its_answers_is_not_read_either(
    web: aiohttp.ClientSession, replica: FakeReplica
) -> None:
    request = HEAD + b"content-length: 5\r\n\r\nlarge"
    async with connected(web) as (reader, writer):
        for _ in range(3):
            writer.write(request)
        for _ in range(3):
            status, body = await answer(reader)
            assert (status, len(body)) == (200, 3_000_000)
    assert replica.arrived == 3


async def test_large_and_unmeasured_answers_pass(web: aiohttp.ClientSession, replica: FakeReplica) -> None:
    for body in ("large", "stream"):
        async with web.post(URL, data=body, headers=KEY) as response:
            assert len(await response.read()) == 3_000_000


async def test_a_client_that_reads_slowly_slows_the_replica(
    web: aiohttp.ClientSession, replica: FakeReplica
) -> None:
    async with connected(web) as (reader, writer):
        writer.write(HEAD + b"content-length: 5\r\n\r\nlarge")
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"content-length: 3000000" in head
        async with web.post(URL, data="{}", headers=KEY) as response:
            assert response.status == 200
        assert len(await reader.readexactly(3_000_000)) == 3_000_000


async def test_what_is_compressed_stays_compressed(web: aiohttp.ClientSession, replica: FakeReplica) -> None:
    body = gzip.compress(b"{}")
    async with web.post(URL, data=body, headers={**KEY, "content-encoding": "gzip"}):
        pass
    assert replica.requests[0].headers["content-encoding"] == "gzip"
    assert replica.requests[0].headers["content-length"] == str(len(body))


# Slow ones


async def test_a_head_that_does_not_end_is_given_up(
    web: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "_HEAD_SECONDS", 0.1)
    async with connected(web) as (reader, writer):
        writer.write(b"POST /endpoints/demo/digits/score HTTP/1.1\r\n")
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 408")
    monkeypatch.setattr(protocol, "_SILENT_SECONDS", 0.1)
    async with connected(web) as (reader, _writer):
        assert await reader.read() == b""


async def test_a_head_has_a_largest_size(web: aiohttp.ClientSession) -> None:
    async with connected(web) as (reader, writer):
        writer.write(HEAD + b"x-long: " + b"x" * 100_000)
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 431")


@pytest.mark.parametrize("limits", [{"body_check_seconds": 0.2}], indirect=True)
async def test_a_body_that_does_not_come_is_given_up(
    web: aiohttp.ClientSession, replica: FakeReplica, table: RouteTable
) -> None:
    async with connected(web) as (reader, writer):
        writer.write(HEAD + b"content-length: 10\r\n\r\n{")
        status, body = await answer(reader)
    assert (status, b"BODY_TOO_SLOW" in body, replica.arrived) == (408, True, 0)
    assert table.endpoints[ENDPOINT].refused.codes == {408: 1}


@pytest.mark.parametrize("limits", [{"body_check_seconds": 0.2}], indirect=True)
async def test_a_large_body_that_stops_in_the_middle_is_given_up(
    web: aiohttp.ClientSession, table: RouteTable
) -> None:
    async with misbehaving() as bad:
        target = route(blue=(100, []))
        target.targets[0].replicas.append(bad.message("blue", ENDPOINT))
        table.replace([target])
        async with connected(web) as (reader, writer):
            writer.write(HEAD + b"content-length: 500000\r\n\r\n" + bytes(100_000))
            status, _ = await answer(reader)
        assert status == 408
        async with asyncio.timeout(60):
            await bad.left.wait()
    deployment = table.endpoints[ENDPOINT].deployments["blue"]
    assert (deployment.in_flight, deployment.counters.codes) == (0, {408: 1})


# Odd ones


async def test_requests_one_behind_the_other_are_answered_in_order(
    web: aiohttp.ClientSession, replica: FakeReplica
) -> None:
    async with connected(web) as (reader, writer):
        one = HEAD + b"content-length: 3\r\n\r\none"
        health = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
        two = HEAD + b"transfer-encoding: chunked\r\n\r\n3\r\ntwo\r\n0\r\n\r\n"
        writer.write(one + health + two + two)
        bodies = [await answer(reader) for _ in range(4)]
    assert [status for status, _ in bodies] == [200] * 4
    assert b'"one"' in bodies[0][1]
    assert bodies[1][1] == b'{"status":"ok"}'
    assert b'"two"' in bodies[2][1]


async def test_the_body_is_asked_for_when_the_caller_may_send_it(
    web: aiohttp.ClientSession, replica: FakeReplica
) -> None:
    async with connected(web) as (reader, writer):
        writer.write(HEAD + b"expect: 100-continue\r\ncontent-length: 2\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"{}")
        assert (await answer(reader))[0] == 200
    async with connected(web) as (reader, writer):
        writer.write(
            HEAD.replace(OWNER_KEY.encode(), b"swk_x") + b"expect: 100-continue\r\ncontent-length: 2\r\n\r\n"
        )
        assert (await answer(reader))[0] == 401


async def test_old_clients_are_answered_and_their_connections_closed(
    web: aiohttp.ClientSession, replica: FakeReplica
) -> None:
    for body, size in ((b"{}", 2), (b"stream", 6)):
        async with connected(web) as (reader, writer):
            head = HEAD.replace(b"HTTP/1.1", b"HTTP/1.0")
            writer.write(head + b"content-length: %d\r\n\r\n" % size + body)
            received = await reader.read()
        assert received.startswith(b"HTTP/1.1 200")
        assert b"transfer-encoding" not in received


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        HEAD + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"content-length: -1\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_what_is_no_http_is_refused(
    web: aiohttp.ClientSession, replica: FakeReplica, request_bytes: bytes
) -> None:
    async with connected(web) as (reader, writer):
        writer.write(request_bytes)
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 400")
    assert replica.arrived == 0


async def test_ids_of_requests(web: aiohttp.ClientSession, replica: FakeReplica) -> None:
    async with web.post(URL, data="{}", headers=KEY) as response:
        made = response.headers["x-request-id"]
    assert len(made) == 32
    assert replica.requests[0].headers["x-request-id"] == made
    assert replica.requests[0].headers["x-ms-client-request-id"] == made
    async with web.post(URL, data="{}", headers={**KEY, "x-ms-request-id": "old", "x-request-id": "r"}):
        pass
    assert replica.requests[1].headers["x-request-id"] == "r"
    assert replica.requests[1].headers["x-ms-client-request-id"] == "old"
    for name in ("x-request-id", "x-ms-client-request-id"):
        async with web.post(URL, data="{}", headers={**KEY, name: "x" * 101}) as response:
            assert (response.status, (await response.json())["reason"]) == (431, "REQUEST_ID_TOO_LONG")
    assert len(replica.requests) == 2


async def test_every_request_has_a_trace(web: aiohttp.ClientSession, replica: FakeReplica) -> None:
    async with web.post(URL, data="{}", headers=KEY) as response:
        own = response.headers["traceresponse"]
    assert replica.requests[0].headers["traceparent"] == own
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
    async with web.post(URL, data="{}", headers={**KEY, "traceparent": parent, "tracestate": "a=b"}):
        pass
    assert replica.requests[1].headers["traceparent"] == parent
    assert replica.requests[1].headers["tracestate"] == "a=b"
    async with web.post(URL, data="{}", headers={**KEY, "traceparent": "nonsense"}) as response:
        assert len(response.headers["traceresponse"]) == 55


async def test_health_of_the_endpoint(web: aiohttp.ClientSession, replica: FakeReplica) -> None:
    for path in ("", "/", "/swagger.json?version=3", "/v2/health/live"):
        async with web.get(f"/endpoints/demo/digits{path}", headers=KEY) as response:
            assert (response.status, (await response.json())["path"]) == (200, path or "/")
    async with web.head("/endpoints/demo/digits/", headers=KEY) as response:
        assert response.status == 200


async def test_two_connections_of_one_client_do_not_mix(
    web: aiohttp.ClientSession, replica: FakeReplica
) -> None:
    async def one(number: int) -> None:
        async with web.post(
            URL, data=f"body {number}", headers={**KEY, "x-request-id": str(number)}
        ) as response:
            assert (await response.json())["body"] == f"body {number}"
            assert response.headers["x-request-id"] == str(number)

    await asyncio.gather(*(one(number) for number in range(300)))
