"""From append to read: metrics and logs through JetStream and MongoDB."""

import asyncio
import math
import random
from itertools import pairwise

import pytest

from services.runs.tests.support import (
    STREAM_BYTES,
    Client,
    Platform,
    metrics,
    points,
    refused,
    submit,
    text,
    values,
)
from stellwerk_platform.auth import StaticCredentials
from stellwerk_platform.grpc_client import connect
from stellwerk_protos.compute.v1.computes_pb2 import ALLOCATION_STATE_SUCCEEDED
from stellwerk_protos.runs.v1 import logs_pb2, metrics_pb2
from stellwerk_protos.runs.v1.ingest_pb2 import AppendRequest, LogChunk, MetricBatch, MetricColumns
from stellwerk_protos.secrets.v1.tokens_pb2 import IssueWorkloadTokenRequest
from stellwerk_runs.metrics.domain import Points

NAN, INF = math.nan, math.inf


async def ended(platform: Platform, run: str) -> None:
    """Brings the run to its end, after which everything can be read."""
    await platform.end(run, ALLOCATION_STATE_SUCCEEDED, "succeeded")


async def summaries(client: Client, run: str) -> dict[str, metrics_pb2.MetricSummary]:
    answer = await client.metrics.ListMetrics(metrics_pb2.ListMetricsRequest(parent=run))
    return {metric.metric: metric for metric in answer.metrics}


async def whole_log(client: Client, run: str, log: str = "", offset: int = 0, follow: bool = False) -> bytes:
    request = logs_pb2.ReadLogRequest(parent=run, log=log, offset=offset, follow=follow)
    data = b""
    async for part in client.logs.ReadLog(request):
        assert part.offset == offset + len(data)
        data += part.data
    return data


async def test_what_is_acknowledged_can_be_read_when_the_run_is_over(
    platform: Platform, client: Client
) -> None:
    run = (await platform.run()).name
    special = points([0.5, NAN, -INF, INF, 1e-300])
    requests = [
        metrics(run, "loss", special, batch=7),
        metrics(run, "précision/top 1", points([1.0], first_step=-3), batch=8),
        metrics(run, "loss", points([2.0], first_step=5), first=5, batch=9),
        text(run, "héllo\n".encode()),
        text(run, b"\x1b[1mworld\r", offset=7),
        text(run, b"second", log="user_logs/std_log_1.txt"),
    ]
    assert await client.append(*requests) == [7, 8, 9, 0, 0, 0]
    await ended(platform, run)
    assert await client.history(run, "loss") == special + points([2.0], first_step=5)
    found = await summaries(client, run)
    loss = found["loss"]
    assert (loss.count, loss.min, loss.max, loss.last, loss.last_step) == (6, -INF, INF, 2.0, 5)
    assert loss.last_time.ToMilliseconds() == 5_000
    assert found["précision/top 1"].last_step == -3
    assert await whole_log(client, run) == "héllo\n\x1b[1mworld\r".encode()
    assert await whole_log(client, run, "user_logs/std_log_1.txt", offset=3) == b"ond"
    logs = await client.logs.ListLogs(logs_pb2.ListLogsRequest(parent=run))
    assert [(log.log, log.size_bytes) for log in logs.logs] == [
        ("user_logs/std_log.txt", 17),
        ("user_logs/std_log_1.txt", 6),
    ]


async def test_overlaps_repetitions_and_disorder_store_each_point_once(
    platform: Platform, client: Client
) -> None:
    run, chance = (await platform.run()).name, random.Random(1)
    whole = {source: points([chance.random() for _ in range(400)]) for source in ("1-aaaaaaaa", "2-bbbbbbbb")}
    data = bytes(chance.randrange(256) for _ in range(20_000))
    cuts = [
        (source, first, first + chance.randrange(1, 60)) for source in whole for first in range(0, 400, 20)
    ]
    chance.shuffle(cuts)
    requests = [
        metrics(run, f"m{source}", whole[source].slice(first, end), first, source)
        for source, first, end in cuts * 2
    ]
    pieces = [(start, start + chance.randrange(1, 3_000)) for start in range(0, 20_000, 1_000)] * 2
    chance.shuffle(pieces)
    requests += [text(run, data[start:end], start) for start, end in pieces]
    # Several connections at once, then everything in order, as a sender does that knows of no answer.
    await asyncio.gather(*(client.append(*requests[part::3]) for part in range(3)))
    await client.append(
        *(metrics(run, f"m{source}", some, 0, source) for source, some in whole.items()), text(run, data)
    )
    await ended(platform, run)
    for source, some in whole.items():
        assert await client.history(run, f"m{source}", page_size=77) == some
    assert await whole_log(client, run) == data


async def test_a_full_stream_holds_the_sender_back_and_loses_nothing(
    platform: Platform, client: Client
) -> None:
    run = (await platform.run()).name
    whole = points([float(n) for n in range(400_000)])
    assert len(whole.values) * 3 > 2 * STREAM_BYTES
    await client.append(
        *(metrics(run, "loss", whole.slice(n, n + 10_000), n) for n in range(0, 400_000, 10_000))
    )
    await ended(platform, run)
    assert await client.history(run, "loss") == whole


async def test_two_sources_of_one_metric_are_both_whole(platform: Platform, client: Client) -> None:
    run = (await platform.run()).name
    for first in range(0, 50, 10):
        await client.append(
            *(
                metrics(run, "loss", points([base + n for n in range(first, first + 10)]), first, source)
                for base, source in ((0.0, "1-aaaaaaaa"), (1_000.0, "2-bbbbbbbb"))
            )
        )
    await ended(platform, run)
    found = values(await client.history(run, "loss"))
    assert [v for v in found if v < 1_000] == [float(n) for n in range(50)]
    assert [v for v in found if v >= 1_000] == [1_000.0 + n for n in range(50)]


async def test_what_comes_too_early_waits_for_what_is_missing(platform: Platform, client: Client) -> None:
    run = (await platform.run()).name
    await client.append(metrics(run, "loss", points([3.0]), first=3), text(run, b"late", offset=6))
    await client.append(metrics(run, "acc", points([1.0])), text(run, b"other", log="other"))
    assert set(await until_summaries(client, run, "acc")) == {"acc"}
    await client.append(metrics(run, "loss", points([0.0, 1.0, 2.0])), text(run, b"first "))
    await ended(platform, run)
    assert values(await client.history(run, "loss")) == [0, 1, 2, 3]
    assert await whole_log(client, run) == b"first late"


async def until_summaries(client: Client, run: str, metric: str) -> dict[str, metrics_pb2.MetricSummary]:
    """Waits by a watch until the metric is there."""
    async for answer in client.metrics.WatchMetrics(metrics_pb2.WatchMetricsRequest(parent=run)):
        if any(column.metric == metric for column in answer.columns):
            break
    return await summaries(client, run)


async def test_a_watch_sends_all_and_resumes_after_its_cursor(platform: Platform, client: Client) -> None:
    run = (await platform.run()).name
    whole = points([float(n) for n in range(3_000)])
    seen: list[float] = []
    cursor = ""

    async def send(first: int, end: int) -> None:
        for start in range(first, end, 60):
            await client.append(metrics(run, "loss", whole.slice(start, start + 60), start))

    async def watch(stop_after: int) -> None:
        nonlocal cursor
        request = metrics_pb2.WatchMetricsRequest(parent=run, cursor=cursor)
        async for answer in client.metrics.WatchMetrics(request):
            for column in answer.columns:
                assert column.first_sequence == len(seen)
                seen.extend(values(Points(column.steps, column.times, column.values)))
            cursor = answer.cursor
            if len(seen) >= stop_after:
                return

    for first, end in pairwise((0, 60, 300, 1_500, 3_000)):
        await asyncio.gather(send(first, end), watch(end))
        assert seen == [float(n) for n in range(end)]
    await ended(platform, run)
    await watch(3_001)
    assert len(seen) == 3_000


async def test_a_watch_of_many_chunks_resumes_in_the_middle(platform: Platform, client: Client) -> None:
    run = (await platform.run()).name
    names = [f"m{n:03d}" for n in range(80)]
    columns = [points([float(n)] * 3).columns(name, 0) for n, name in enumerate(names)]
    await client.append(AppendRequest(run=run, metrics=MetricBatch(source="s", columns=columns)))
    await ended(platform, run)
    seen, cursor = [], ""
    while True:
        call = client.metrics.WatchMetrics(metrics_pb2.WatchMetricsRequest(parent=run, cursor=cursor))
        answer = await call.read()
        call.cancel()
        if not isinstance(answer, metrics_pb2.WatchMetricsResponse):
            break
        seen += [column.metric for column in answer.columns]
        cursor = answer.cursor
    assert seen == names
    other = (await platform.run()).name
    call = client.metrics.WatchMetrics(metrics_pb2.WatchMetricsRequest(parent=other, cursor=cursor))
    assert (await refused(call.read())).reason == "INVALID_PAGE_TOKEN"


async def test_a_log_is_followed_to_its_end(platform: Platform, client: Client) -> None:
    run = (await platform.run()).name
    following = asyncio.create_task(whole_log(client, run, offset=5, follow=True))
    data = b"".join(b"line %d\n" % n for n in range(5_000))
    for start in range(0, len(data), 4_000):
        await client.append(text(run, data[start : start + 4_000], start))
    await ended(platform, run)
    assert await following == data[5:]


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (AppendRequest(), "INVALID_NAME"),
        (AppendRequest(run="{run}"), "NOTHING_TO_APPEND"),
        (AppendRequest(run="{run}x", log=LogChunk(log="a", data=b"x")), "RUN_NOT_FOUND"),
        (AppendRequest(run="{run}", log=LogChunk(log="../a", data=b"x")), "INVALID_PATH"),
        (AppendRequest(run="{run}", log=LogChunk(log="a", offset=-1, data=b"x")), "INVALID_POSITION"),
        (AppendRequest(run="{run}", log=LogChunk(log="a", data=b"x" * (2**20 + 1))), "CHUNK_TOO_LARGE"),
        (AppendRequest(run="{run}", metrics=MetricBatch()), "INVALID_SOURCE"),
        (
            AppendRequest(
                run="{run}", metrics=MetricBatch(source="s", columns=[points([1.0]).columns("x" * 501, 0)])
            ),
            "INVALID_METRIC",
        ),
        (
            AppendRequest(
                run="{run}",
                metrics=MetricBatch(
                    source="s", columns=[MetricColumns(metric="m", steps=b"1" * 8, times=b"1" * 8)]
                ),
            ),
            "COLUMNS_DISAGREE",
        ),
    ],
)
async def test_a_bad_append_is_refused_after_the_answers_to_the_good_ones(
    platform: Platform, client: Client, request_: AppendRequest, reason: str
) -> None:
    run = (await platform.run()).name
    bad = AppendRequest()
    bad.CopyFrom(request_)
    bad.run = bad.run.replace("{run}", run)
    good = metrics(run, "loss", points([1.0]), batch=1)
    error = await refused(client.append(good, bad))
    assert error.reason == reason
    await ended(platform, run)
    assert values(await client.history(run, "loss")) == [1.0]


async def test_a_workload_without_children_appends_only_to_itself(platform: Platform, client: Client) -> None:
    workspace = await platform.workspace()
    mine, other = [(await client.runs.CreateRun(submit(workspace))).name for _ in range(2)]
    async with platform.secrets.as_service() as secrets:
        token = (await secrets.IssueWorkloadToken(IssueWorkloadTokenRequest(owner=mine))).token
    async with connect(platform.settings.listen, StaticCredentials(token)) as channel:
        workload = Client(channel)
        assert await workload.append(text(mine, b"mine", 0)) == [0]
        error = await refused(workload.append(text(other, b"not mine", 0)))
        assert error.reason == "PERMISSION_DENIED"


async def test_reading_what_is_not_there_says_so(platform: Platform, client: Client) -> None:
    run = (await platform.run()).name
    assert (await refused(client.history(run, "none"))).reason == "METRIC_NOT_FOUND"
    assert (await refused(client.history(run + "x", "none"))).reason == "RUN_NOT_FOUND"
    assert (await refused(whole_log(client, run, "none"))).reason == "LOG_NOT_FOUND"
    assert await whole_log(client, run) == b""


async def test_much_that_waited_is_stored_piece_by_piece(platform: Platform, client: Client) -> None:
    run, size = (await platform.run()).name, 1024 * 1024
    # More than one transaction of the test server's MongoDB can hold.
    for number in range(1, 33):
        await client.append(text(run, bytes([number]) * size, number * size))
    await client.append(text(run, b"\0" * size))
    await ended(platform, run)
    request = logs_pb2.ReadLogRequest(parent=run, follow=True)
    parts = [part.data async for part in client.logs.ReadLog(request)]
    assert b"".join(parts) == b"".join(bytes([number]) * size for number in range(33))
