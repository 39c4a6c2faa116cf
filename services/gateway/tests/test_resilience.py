"""What a client sees when replicas hang, die, lie, or are too busy."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from services.gateway.tests.conftest import OWNER_KEY
from services.gateway.tests.misbehaving import OK, Misbehaving, misbehaving
from services.gateway.tests.replica import ENDPOINT, FakeReplica, route, until
from stellwerk_gateway.scoring.deployment import Deployment
from stellwerk_gateway.scoring.routes import RouteTable
from stellwerk_protos.inference.v1 import endpoints_pb2 as pb

URL = "/endpoints/demo/digits/score"
KEY = {"authorization": f"Bearer {OWNER_KEY}"}


@pytest.fixture
async def good() -> AsyncIterator[FakeReplica]:
    replica = FakeReplica("good")
    await replica.start()
    yield replica
    replica.gate.set()
    await replica.stop()


@pytest.fixture
async def bad() -> AsyncIterator[Misbehaving]:
    async with misbehaving() as server:
        yield server


def blue(*replicas: FakeReplica | Misbehaving, starting: bool = False, **settings: Any) -> pb.Route:
    """A route of one deployment."""
    table = route(blue=(100, []))
    target = table.targets[0]
    target.starting = starting
    target.settings.CopyFrom(pb.RequestSettings(**settings))
    for replica in replicas:
        if isinstance(replica, FakeReplica):
            target.replicas.append(replica.message("blue"))
        else:
            target.replicas.append(replica.message("blue", ENDPOINT))
    return table


def deployment(table: RouteTable) -> Deployment:
    return table.endpoints[ENDPOINT].deployments["blue"]


async def score(web: aiohttp.ClientSession, method: str = "POST") -> tuple[int, Any, Any]:
    """Status, reason or who answered, headers."""
    async with web.request(method, URL, data="{}", headers=KEY) as response:
        document = await response.json(content_type=None)
        return response.status, document.get("reason", document.get("by")), response.headers


# A replica dies


async def test_a_lost_request_is_not_sent_twice_unless_that_is_allowed(
    web: aiohttp.ClientSession, table: RouteTable, good: FakeReplica, bad: Misbehaving
) -> None:
    bad.answer = b""
    table.replace([blue(bad)])
    status, reason, _ = await score(web)
    assert (status, reason, len(bad.requests)) == (502, "REPLICA_LOST", 1)
    # What may be repeated by its nature is.
    table.replace([blue(bad, good)])
    assert {(await score(web, "GET"))[1] for _ in range(2)} == {"good"}
    table.replace([blue(bad, good, retry_lost_requests=True)])
    assert {(await score(web))[1] for _ in range(2)} == {"good"}
    assert deployment(table).counters.retries >= 1


async def test_a_request_whose_worker_died_is_repeated_only_where_that_is_allowed(
    web: aiohttp.ClientSession, table: RouteTable, good: FakeReplica, bad: Misbehaving
) -> None:
    body = b'{"error":"died","reason":"WORKER_DIED"}'
    bad.answer = b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    table.replace([blue(bad)])
    assert (await score(web))[:2] == (502, "WORKER_DIED")
    table.replace([blue(bad, good, retry_lost_requests=True)])
    assert {(await score(web))[1] for _ in range(4)} == {"good"}


async def test_an_answer_that_is_cut_off_is_cut_off_at_the_client_too(
    web: aiohttp.ClientSession, table: RouteTable, bad: Misbehaving
) -> None:
    bad.answer = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf"
    table.replace([blue(bad)])
    with pytest.raises(aiohttp.ClientError):
        await score(web)
    assert deployment(table).counters.codes == {502: 1}


async def test_an_answer_that_is_no_http_is_an_error(
    web: aiohttp.ClientSession, table: RouteTable, bad: Misbehaving
) -> None:
    bad.answer = b"nonsense\r\n\r\n"
    table.replace([blue(bad)])
    assert (await score(web))[:2] == (502, "REPLICA_LOST")
    bad.answer = b"HTTP/1.1 200 OK\r\n" + b"x-long: " + b"x" * 200_000
    assert (await score(web))[:2] == (502, "REPLICA_LOST")


async def test_an_answer_without_a_length_ends_with_its_connection(
    web: aiohttp.ClientSession, table: RouteTable, bad: Misbehaving
) -> None:
    bad.answer = (
        b'HTTP/1.1 200 OK\r\nconnection: x-private\r\nx-private: 1\r\nx-public: 1\r\n\r\n{"by": "bad"}'
    )
    table.replace([blue(bad)])
    status, by, headers = await score(web)
    assert (status, by, "x-private" in headers, headers["x-public"]) == (200, "bad", False, "1")


# Taken out and back


async def test_a_replica_that_hangs_is_taken_out_and_comes_back(
    web: aiohttp.ClientSession, table: RouteTable, good: FakeReplica, bad: Misbehaving
) -> None:
    table.replace([blue(bad, good, timeout_ms=400)])
    bad.answer = None
    async with asyncio.timeout(60):
        while not deployment(table).replicas[0].is_out:
            status, by, _ = await score(web)
            # On a slow machine the good one may be late too.
            assert (status, by) in ((504, "SCORING_TIMEOUT"), (200, "good"))
    assert len(bad.requests) == 3
    table.replace([blue(bad, good)])
    assert [(await score(web))[:2] for _ in range(3)] == [(200, "good")] * 3
    assert deployment(table).counters.ejections == 1
    bad.answer = OK
    await until(lambda: not any(replica.is_out for replica in deployment(table).replicas))
    for _ in range(2):
        await score(web)
    assert len(bad.requests) == 4


async def test_the_last_replica_is_not_taken_out_for_being_slow(
    web: aiohttp.ClientSession, table: RouteTable, bad: Misbehaving
) -> None:
    table.replace([blue(bad, timeout_ms=50)])
    bad.answer = None
    assert {(await score(web))[0] for _ in range(5)} == {504}
    bad.answer = OK
    table.replace([blue(bad)])
    assert (await score(web))[0] == 200


async def test_a_replica_that_turns_unready_gets_no_more_requests(
    web: aiohttp.ClientSession, table: RouteTable, good: FakeReplica, bad: Misbehaving
) -> None:
    bad.ready = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"
    table.replace([blue(bad, good)])
    await until(lambda: deployment(table).counters.ejections == 1)
    assert {(await score(web))[1] for _ in range(4)} == {"good"}
    bad.ready = OK
    await until(lambda: not any(replica.is_out for replica in deployment(table).replicas))
    assert [(await score(web))[1] for _ in range(2)].count("good") == 1


# Full


async def test_more_than_may_wait_are_told_to_come_back(
    web: aiohttp.ClientSession, table: RouteTable, good: FakeReplica
) -> None:
    table.replace([blue(good, max_concurrent_requests=2, max_queued_requests=3)])
    good.gate.clear()
    calls = [asyncio.create_task(score(web)) for _ in range(5)]
    await until(lambda: deployment(table).queued == 3 and good.arrived == 2)
    assert deployment(table).in_flight == 2
    status, reason, headers = await score(web)
    assert (status, reason, headers["retry-after"]) == (429, "QUEUE_FULL", "1")
    good.gate.set()
    assert {(await call)[:2] for call in calls} == {(200, "good")}
    assert (deployment(table).queued, deployment(table).in_flight) == (0, 0)
    assert deployment(table).counters.codes == {200: 5, 429: 1}


async def test_time_spent_waiting_counts(
    web: aiohttp.ClientSession, table: RouteTable, good: FakeReplica
) -> None:
    table.replace([blue(good, max_concurrent_requests=1, timeout_ms=600)])
    good.gate.clear()
    answers = await asyncio.gather(score(web), score(web))
    assert [answer[:2] for answer in answers] == [(504, "SCORING_TIMEOUT")] * 2
    # None, if it was too late already when it was its turn.
    assert good.arrived <= 1
    assert (deployment(table).queued, deployment(table).in_flight) == (0, 0)


async def test_a_client_that_leaves_frees_its_place(
    web: aiohttp.ClientSession, table: RouteTable, good: FakeReplica, bad: Misbehaving
) -> None:
    table.replace([blue(bad, max_concurrent_requests=1)])
    bad.answer = None
    asking, waiting = (asyncio.create_task(score(web)) for _ in range(2))
    await until(lambda: deployment(table).queued == 1)
    waiting.cancel()
    await until(lambda: deployment(table).queued == 0)
    asking.cancel()
    # The replica sees that nobody waits for it any more.
    async with asyncio.timeout(60):
        await bad.left.wait()
    await until(lambda: deployment(table).in_flight == 0)
    assert deployment(table).counters.codes == {499: 2}


# Nobody there yet


async def test_requests_wait_for_a_deployment_that_starts(
    web: aiohttp.ClientSession, table: RouteTable, good: FakeReplica
) -> None:
    table.replace([blue(starting=True)])
    waiting = asyncio.create_task(score(web))
    await until(lambda: deployment(table).queued == 1)
    table.replace([blue(good)])
    assert (await waiting)[:2] == (200, "good")


@pytest.mark.parametrize("limits", [{"park_seconds": 0.3}], indirect=True)
async def test_requests_do_not_wait_for_ever(web: aiohttp.ClientSession, table: RouteTable) -> None:
    table.replace([blue(starting=True)])
    status, reason, headers = await score(web)
    assert (status, reason, headers["retry-after"]) == (503, "NO_READY_REPLICA", "1")


async def test_requests_that_wait_for_a_deployment_that_ends_are_told(
    web: aiohttp.ClientSession, table: RouteTable
) -> None:
    table.replace([blue(starting=True)])
    waiting = asyncio.create_task(score(web))
    await until(lambda: deployment(table).queued == 1)
    table.replace([])
    assert (await waiting)[:2] == (503, "NO_READY_REPLICA")


async def test_a_replica_that_leaves_finishes_what_it_has(
    web: aiohttp.ClientSession, table: RouteTable, good: FakeReplica, bad: Misbehaving
) -> None:
    table.replace([blue(good)])
    good.gate.clear()
    running = asyncio.create_task(score(web))
    await until(lambda: good.arrived == 1)
    table.replace([blue(bad)])
    assert (await score(web))[0] == 200
    good.gate.set()
    assert (await running)[:2] == (200, "good")
