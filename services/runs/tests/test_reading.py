"""Reading what runs said: many histories at once, records, and logs by time, tail and search."""

import asyncio
import json
import math
from collections.abc import Sequence

import pytest

from services.runs.tests.support import Client, Platform, metrics, points, records, refused, text, values
from stellwerk_protos.compute.v1.computes_pb2 import ALLOCATION_STATE_SUCCEEDED
from stellwerk_protos.runs.v1 import ingest_pb2 as ingest
from stellwerk_protos.runs.v1 import logs_pb2, metrics_pb2, runs_pb2
from stellwerk_runs.metrics.domain import Points

CONFUSION = {"class_labels": ["0", "1"], "matrix": [[3, 1], [0, 4]]}


async def ended(platform: Platform, *requests: ingest.AppendRequest, run: str) -> None:
    """Appends, then ends the run, so that reads wait for all of it."""
    await platform.client.append(*requests)
    await platform.end(run, ALLOCATION_STATE_SUCCEEDED, "succeeded")


async def histories(
    client: Client, runs: Sequence[str], sampling: "metrics_pb2.Sampling.ValueType", **fields: object
) -> dict[tuple[str, str], tuple[int, list[float]]]:
    answer = await client.metrics.GetMetricHistories(
        metrics_pb2.GetMetricHistoriesRequest(
            parent=runs[0].rsplit("/", 2)[0],
            runs=runs,
            sampling=sampling,
            **fields,  # type: ignore[arg-type]  # the test's own fields
        )
    )
    return {
        (one.run, one.columns.metric): (
            one.count,
            values(Points(one.columns.steps, one.columns.times, one.columns.values)),
        )
        for one in answer.series
    }


async def test_many_histories_come_in_one_answer(platform: Platform, client: Client) -> None:
    workspace = await platform.workspace()
    one, two = [(await platform.run(workspace)).name for _ in range(2)]
    wave = [math.sin(n / 50) for n in range(20_000)]
    wave[777], wave[5_000], wave[5_001] = 9.0, math.nan, math.inf
    await ended(platform, metrics(one, "wave", points(wave)), metrics(one, "b", points([1.0])), run=one)
    await ended(platform, metrics(two, "wave", points([1.0, math.nan])), run=two)
    exact = await histories(client, [one, two], metrics_pb2.SAMPLING_EXACT)
    assert [(key, count) for key, (count, _) in exact.items()] == [
        ((one, "b"), 1),
        ((one, "wave"), 20_000),
        ((two, "wave"), 2),
    ]
    assert exact[one, "wave"][1][5_001:] == wave[5_001:]
    for sampling in (metrics_pb2.SAMPLING_LTTB, metrics_pb2.SAMPLING_MIN_MAX):
        found = await histories(client, [one], sampling, metrics=["wave", "none"], max_points=500)
        ((_, (count, short)),) = found.items()
        assert count == 20_000
        assert 450 < len(short) <= 500
        assert (short[0], short[-1]) == (wave[0], wave[-1])
        assert 9.0 in short
        assert sum(math.isnan(value) for value in short) == 1


async def test_what_is_too_much_or_wrong_is_refused(platform: Platform, client: Client) -> None:
    run = (await platform.run()).name
    await client.append(
        *(metrics(run, f"m{n}", points(range(40_000))) for n in range(13)), records(run, param("a", "b"))
    )
    await platform.end(run, ALLOCATION_STATE_SUCCEEDED, "succeeded")
    exact = metrics_pb2.SAMPLING_EXACT
    assert (await refused(histories(client, [run], exact))).reason == "TOO_MANY_POINTS"
    assert len(await histories(client, [run], metrics_pb2.SAMPLING_UNSPECIFIED)) == 13
    other = (await platform.run()).name
    assert (await refused(histories(client, [run, other], exact))).reason == "WORKSPACE_MISMATCH"
    assert (await refused(histories(client, [run + "x"], exact))).reason == "RUN_NOT_FOUND"
    assert (await refused(histories(client, [run], exact, max_points=2))).reason == "INVALID_MAX_POINTS"
    assert (await refused(histories(client, [run], exact, metrics=["m"] * 101))).reason == "TOO_MANY_SERIES"


def param(name: str, value: str) -> ingest.Record:
    return ingest.Record(name=name, kind=ingest.RECORD_KIND_PARAM, value=value)


def record(name: str, kind: "ingest.RecordKind.ValueType", value: object, step: int = 0) -> ingest.Record:
    return ingest.Record(name=name, kind=kind, step=step, time=5, value=json.dumps(value))


async def test_records_are_kept_once_in_order_and_parameters_go_to_the_run(
    platform: Platform, client: Client
) -> None:
    run = (await platform.run()).name
    sent = [
        record("losses", ingest.RECORD_KIND_LIST, [1, 2.5]),
        record("table", ingest.RECORD_KIND_ROW, {"x": 1, "y": "a"}),
        param("rate", "0.1"),
        record("table", ingest.RECORD_KIND_ROW, {"x": 2, "y": "b"}, step=1),
        ingest.Record(name="tag", kind=ingest.RECORD_KIND_TAG, value="first"),
        record("confusion", ingest.RECORD_KIND_CONFUSION_MATRIX, CONFUSION),
        record("wrapped", ingest.RECORD_KIND_CONFUSION_MATRIX, {"schema_type": "x", "data": CONFUSION}),
        ingest.Record(name="plot", kind=ingest.RECORD_KIND_IMAGE, artifact="plots/a.png"),
        param("rate", "0.2"),
        ingest.Record(name="tag", kind=ingest.RECORD_KIND_TAG, value="second"),
        ingest.Record(name="big", kind=ingest.RECORD_KIND_LIST, value="[" + "1," * 500_000 + "1]"),
    ]
    # Overlapping, and the last of a batch before the one that it continues.
    await ended(
        platform,
        records(run, *sent[:4]),
        records(run, *sent[8:], first=8),
        records(run, *sent[2:9], first=2),
        records(run, *sent),
        run=run,
    )
    listed = [one for one in sent if one.kind not in (ingest.RECORD_KIND_PARAM, ingest.RECORD_KIND_TAG)]
    found: list[ingest.Record] = []
    token = ""
    while True:
        answer = await client.metrics.ListRecords(
            metrics_pb2.ListRecordsRequest(parent=run, page_size=3, page_token=token)
        )
        found += answer.records
        token = answer.next_page_token
        if not token:
            break
    assert found == listed
    rows = await client.metrics.ListRecords(metrics_pb2.ListRecordsRequest(parent=run, record="table"))
    assert list(rows.records) == [sent[1], sent[3]]
    stored = await client.runs.GetRun(runs_pb2.GetRunRequest(name=run))
    assert (dict(stored.params), dict(stored.tags)) == ({"rate": "0.1"}, {"tag": "second"})


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (ingest.Record(name="", kind=ingest.RECORD_KIND_PARAM), "0 characters"),
        (ingest.Record(name="x"), "kind is 0"),
        (ingest.Record(name="x", kind=99), "kind is 99"),  # type: ignore[arg-type]  # what nobody knows
        (ingest.Record(name="x", kind=ingest.RECORD_KIND_LIST, value="[1"), "no JSON"),
        (ingest.Record(name="x", kind=ingest.RECORD_KIND_LIST, value="[" * 100_000), "no JSON"),
        (record("x", ingest.RECORD_KIND_LIST, [1, "2"]), "item 1"),
        (record("x", ingest.RECORD_KIND_ROW, {}), "a column or more"),
        (record("x", ingest.RECORD_KIND_ROW, {"a": [1]}), "column 'a'"),
        (record("x", ingest.RECORD_KIND_TABLE, {"a": [1], "b": [1, 2]}), "differ in length"),
        (record("x", ingest.RECORD_KIND_CONFUSION_MATRIX, {"matrix": []}), "'class_labels' is missing"),
        (
            record("x", ingest.RECORD_KIND_CONFUSION_MATRIX, {"class_labels": ["a"], "matrix": [[1, 2]]}),
            "not 1 x 1",
        ),
        (record("x", ingest.RECORD_KIND_RESIDUALS, {"bin_edges": []}), "'bin_counts'"),
        (record("x", ingest.RECORD_KIND_PREDICTIONS, [1]), "JSON object"),
        (record("x", ingest.RECORD_KIND_ACCURACY_TABLE, {}), "'probability_tables'"),
        (ingest.Record(name="x", kind=ingest.RECORD_KIND_PARAM, value="ä" * 600_000), "1,200,000 bytes"),
    ],
)
async def test_a_record_that_cannot_be_stored_is_refused_and_says_why(
    platform: Platform, client: Client, bad: ingest.Record, said: str
) -> None:
    error = await refused(client.append(records(f"{await platform.workspace()}/runs/any", bad)))
    assert error.reason == "INVALID_RECORD"
    assert said in error.message


async def read(client: Client, run: str, **fields: object) -> list[logs_pb2.ReadLogResponse]:
    request = logs_pb2.ReadLogRequest(parent=run, **fields)  # type: ignore[arg-type]  # the test's own
    return [part async for part in client.logs.ReadLog(request)]


async def search(client: Client, run: str, query: str, page_size: int = 0) -> list[logs_pb2.LogLine]:
    """All lines that hold the query, read in pages."""
    lines: list[logs_pb2.LogLine] = []
    token = ""
    while True:
        answer = await client.logs.SearchLog(
            logs_pb2.SearchLogRequest(parent=run, query=query, page_size=page_size, page_token=token)
        )
        lines += answer.lines
        token = answer.next_page_token
        if not token:
            return lines


async def test_log_text_keeps_its_times_and_is_read_from_its_tail(platform: Platform, client: Client) -> None:
    run = (await platform.run()).name
    parts = [(b"one\n", 10_000), (b"two\n", 10_500), (b"drei \xc3\xa4\n", 12_000)]
    offset, requests = 0, []
    for data, moment in parts:
        requests.append(text(run, data, offset, time=moment))
        offset += len(data)
    await ended(platform, *requests, run=run)
    # What comes within a second of a time is under that time.
    assert [(part.offset, part.data, part.time) for part in await read(client, run)] == [
        (0, b"one\ntwo\n", 10_000),
        (8, b"drei \xc3\xa4\n", 12_000),
    ]
    # Two bytes before the end is in the middle of a character.
    assert [part.data for part in await read(client, run, tail_bytes=2)] == [b"\n"]
    assert b"".join(part.data for part in await read(client, run, tail_bytes=10**6)) == b"".join(
        data for data, _ in parts
    )
    assert (
        await refused(asyncio.ensure_future(read(client, run, tail_bytes=-1)))
    ).reason == "INVALID_POSITION"
    both = read(client, run, offset=1, tail_bytes=1)
    assert (await refused(asyncio.ensure_future(both))).reason == "INVALID_POSITION"
    lines = await search(client, run, "Ä")
    assert [(line.offset, line.text, line.time) for line in lines] == [(8, "drei ä", 12_000)]


async def test_a_log_of_50_megabytes_is_searched_in_bounded_calls(platform: Platform, client: Client) -> None:
    run = (await platform.run()).name
    line = b"epoch %06d " + b"x" * 80 + b"\n"
    size = len(line % 0)
    block = 10_000 * size
    requests = [
        text(run, b"".join(line % n for n in range(first, first + 10_000)), first * size)
        for first in range(0, 500_000, 10_000)
    ]
    assert 50 * block > 45_000_000
    for number in range(0, 50, 2):
        await client.append(*requests[number : number + 2])
    await platform.end(run, ALLOCATION_STATE_SUCCEEDED, "succeeded")
    assert sum(len(part.data) for part in await read(client, run, follow=True)) == 50 * block
    found = await search(client, run, "EPOCH 4999")
    assert [line.offset // size for line in found] == [*range(499_900, 500_000)]
    assert len(await search(client, run, "epoch 00", page_size=1_000)) == 10_000
    assert await search(client, run, "nothing like this") == []
    first = logs_pb2.SearchLogRequest(parent=run, query="epoch", page_size=1)
    token = (await client.logs.SearchLog(first)).next_page_token
    other = logs_pb2.SearchLogRequest(parent=run, query="Epoch!", page_token=token)
    assert (await refused(client.logs.SearchLog(other))).reason == "INVALID_PAGE_TOKEN"
    for query, reason in [("", "INVALID_QUERY"), ("x" * 1_001, "INVALID_QUERY")]:
        request = logs_pb2.SearchLogRequest(parent=run, query=query)
        assert (await refused(client.logs.SearchLog(request))).reason == reason
