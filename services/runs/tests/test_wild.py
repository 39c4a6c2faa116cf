"""Senders and readers that are far from what a script should do: they harm nobody else, and lose nothing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

from services.runs.tests.support import Client, Platform, ingest_store, metrics, points, text
from stellwerk_launcher.testing import guard_without_registry
from stellwerk_platform.auth import Caller, set_caller
from stellwerk_platform.mongo import Database
from stellwerk_protos.compute.v1.computes_pb2 import ALLOCATION_STATE_SUCCEEDED
from stellwerk_protos.runs.v1 import metrics_pb2
from stellwerk_protos.runs.v1.ingest_pb2 import AppendRequest, AppendResponse, MetricBatch
from stellwerk_runs.changes import Changes
from stellwerk_runs.ingest import service
from stellwerk_runs.ingest.domain import LOGS
from stellwerk_runs.ingest.service import IngestService
from stellwerk_runs.ingest.store import Message
from stellwerk_runs.ingest.streams import Streams
from stellwerk_runs.logs.replicas import Owners, Replicas
from stellwerk_runs.logs.store import LogStore
from stellwerk_runs.runs.store import RunStore

LOG = "user_logs/std_log.txt"


async def test_a_run_with_very_many_metrics_is_stored_and_holds_up_no_other(
    platform: Platform, client: Client
) -> None:
    """As of a script that puts the step into the metric's name."""
    wild, other = [(await platform.run()).name for _ in range(2)]
    columns = [points([1.0]).columns(f"loss_{n}", 0) for n in range(60_000)]
    batches = [MetricBatch(source="s", columns=columns[n : n + 20_000]) for n in range(0, 60_000, 20_000)]
    await client.append(*(AppendRequest(run=wild, metrics=batch) for batch in batches))
    await client.append(metrics(other, "loss", points([1.0])))
    for run, count in ((other, 1), (wild, 60_000)):
        await platform.end(run, ALLOCATION_STATE_SUCCEEDED, "succeeded")
        found, token = 0, ""
        while found == 0 or token:
            request = metrics_pb2.ListMetricsRequest(parent=run, page_size=1_000, page_token=token)
            answer = await client.metrics.ListMetrics(request)
            found, token = found + len(answer.metrics), answer.next_page_token
        assert found == count


async def test_a_log_that_grows_while_it_is_read_has_no_gap(platform: Platform) -> None:
    database = Database(platform.settings.mongodb_uri, platform.settings.namespace, "runs")
    logs, run, data = LogStore(database), "workspaces/none/runs/grows", b""
    store = ingest_store(database)

    async def write(more: bytes) -> None:
        nonlocal data
        await store.write(LOGS, run, [Message("0", text(run, more, len(data)))])
        data += more

    # As many chunks as MongoDB sends at first, the last of them a small one that will grow.
    for n in range(100):
        await write(bytes([n]) * 32 * 1024)
    await write(b"tail")
    read, reading = b"", logs.read(run, LOG, 0)
    while len(read) < len(data):
        read += (await anext(reading)).data
    await write(b"x" * 600_000)
    async for part in reading:
        assert part.offset == len(read)
        read += part.data
    assert read == data
    database.close()


async def _nobody(token: str) -> Caller:
    raise AssertionError("the caller is set already")


async def test_senders_that_leave_at_once_leave_room_for_others(platform: Platform) -> None:
    run = (await platform.run()).name
    database = Database(platform.settings.mongodb_uri, platform.settings.namespace, "runs")
    changes = Changes(platform.bus)
    runs = Owners(RunStore(database), Replicas(database, platform.bus, changes))
    ingest = IngestService(
        platform.bus,
        runs,
        Streams(platform.bus, runs, changes),
        guard_without_registry(_nobody),
    )
    set_caller(Caller("users/owner", "User", 0.0))
    await runs.check(run)
    request = text(run, bytes(1024 * 1024))

    async def leaving() -> AsyncIterator[AppendRequest]:
        # The sender goes in the moment in which its request is read.
        calls[-1].cancel()
        yield request

    calls: list[asyncio.Task[AppendResponse]] = []
    for _ in range(service._IN_FLIGHT_PIECES):
        calls.append(asyncio.ensure_future(anext(ingest.Append(leaving(), None))))
        with suppress(asyncio.CancelledError):
            await calls[-1]

    async def staying() -> AsyncIterator[AppendRequest]:
        yield request

    async with asyncio.timeout(60):
        assert [answer.batch async for answer in ingest.Append(staying(), None)] == [0]
    database.close()
