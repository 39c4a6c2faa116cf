"""The pure part of storing: any order, repetition and cut of what a sender sends gives its series once."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runs.tests.support import points, values
from stellwerk_platform.errors import ResourceExhausted
from stellwerk_protos.runs.v1.ingest_pb2 import AppendRequest, LogChunk, MetricBatch
from stellwerk_runs.ingest.domain import PIECE_BYTES, arrivals, message_id, piece_of, pieces
from stellwerk_runs.ingest.sequence import Arrival, advance
from stellwerk_runs.ingest.sources import Names, logs, sources
from stellwerk_runs.logs.domain import CHUNK_BYTES, LogEnd, LogText, Written
from stellwerk_runs.metrics.domain import CHUNK_POINTS, Chunk, Points, Series, join

LENGTH = 60
CUTS = st.tuples(st.integers(0, LENGTH - 1), st.integers(1, LENGTH)).map(lambda cut: (cut[0], sum(cut)))
RUN = "workspaces/demo/runs/r1"


def arrival(source: str, start: int, end: int) -> Arrival:
    return Arrival(("loss", source), start, end - start, list(range(LENGTH))[start:end], "m")


@given(st.lists(st.lists(st.tuples(st.sampled_from("ab"), CUTS), max_size=6), max_size=8))
def test_any_delivery_gives_each_item_once_and_in_order(
    batches: list[list[tuple[str, tuple[int, int]]]],
) -> None:
    stored: dict[str, list[int]] = {"a": [], "b": []}
    ends: dict[tuple[str, ...], int] = {}
    waiting: list[Arrival] = []
    # In the end everything is sent once more from the start, as a sender does after a failure.
    for batch in [*batches, [("a", (0, LENGTH)), ("b", (0, LENGTH))]]:
        incoming = [arrival(source, start, min(end, LENGTH)) for source, (start, end) in batch]
        fresh, waiting = advance([*incoming, *waiting], ends)
        for item in fresh:
            payload = item.arrival.payload
            assert isinstance(payload, list)
            stored[item.arrival.key[1]] += payload[item.skip :]
        for source, items in stored.items():
            assert items == list(range(ends.get(("loss", source), 0)))
    assert stored == {"a": list(range(LENGTH)), "b": list(range(LENGTH))}
    assert not waiting


@given(st.lists(st.integers(1, 3_000), min_size=1, max_size=12))
def test_chunks_hold_all_points_and_marks_cut_them_by_version(sizes: list[int]) -> None:
    series, chunks, total = Series("loss"), dict[int, Chunk](), 0
    for version, size in enumerate(sizes, start=1):
        tail = chunks[series.tail] if series.tail_is_small else None
        for chunk in series.append(points(range(total, total + size)), tail, version):
            chunks[chunk.first] = chunk
        total += size
    everything = join(chunks[first].points for first in sorted(chunks))
    assert values(everything) == list(range(total)) == [float(n) for n in range(series.count)]
    assert all(len(chunk.points) <= CHUNK_POINTS for chunk in chunks.values())
    for since in range(len(sizes) + 1):
        for until in range(since, len(sizes) + 1):
            found = [chunks[first].between(since, until) for first in sorted(chunks)]
            got = [v for c in found if c is not None for v in values(Points(c.steps, c.times, c.values))]
            assert got == list(range(sum(sizes[:since]), sum(sizes[:until])))


def test_a_long_append_is_cut_into_full_chunks() -> None:
    series = Series("loss")
    chunks = series.append(points(range(2 * CHUNK_POINTS + 5)), None, 1)
    assert [len(chunk.points) for chunk in chunks] == [CHUNK_POINTS, CHUNK_POINTS, 5]
    assert (series.tail, series.tail_is_small) == (2 * CHUNK_POINTS, True)


def test_a_summary_leaves_out_what_is_no_number_and_keeps_infinities() -> None:
    series = Series("loss")
    series.append(points([math.nan]), None, 1)
    assert math.isnan(series.minimum)
    assert math.isnan(series.maximum)
    series.append(points([2.0, -math.inf, math.nan], first_step=7), None, 2)
    assert (series.minimum, series.maximum, series.count) == (-math.inf, 2.0, 4)
    assert (series.last_step, series.last_time, math.isnan(series.last)) == (9, 9_000, True)


@given(st.lists(st.integers(1, 40_000), min_size=1, max_size=30))
def test_log_chunks_hold_all_text(sizes: list[int]) -> None:
    end, chunks, whole = LogEnd("log"), dict[int, LogText](), b""
    for number, size in enumerate(sizes):
        data = bytes([number % 251]) * size
        tail = chunks[end.tail] if end.tail_is_small else None
        for text in end.append([Written(data, 1_000 * number)], tail):
            chunks[text.offset] = text
        whole += data
    assert b"".join(chunks[offset].data for offset in sorted(chunks)) == whole
    assert end.size_bytes == len(whole)
    assert all(len(text.data) <= CHUNK_BYTES for text in chunks.values())


def test_a_request_travels_in_bounded_pieces_that_are_all_of_it() -> None:
    many = points(range(50_000))
    columns = [many.columns("loss", 5), points([1.0]).columns("acc", 0), Points().columns("none", 0)]
    request = AppendRequest(run=RUN, metrics=MetricBatch(source="s", columns=columns))
    cut = list(pieces(request))
    assert all(piece.ByteSize() < PIECE_BYTES + 1_000 for piece in cut)
    found = [item for piece in cut for item in arrivals(piece, "m")]
    fresh, waiting = advance(found, {("loss", "s"): 5})
    assert not waiting
    assert join(f.arrival.payload for f in fresh if f.arrival.key[0] == "loss") == many  # type: ignore[misc]
    log = AppendRequest(run=RUN, log=LogChunk(log="log", offset=3, data=b"x" * 700_000))
    assert [(a.position, a.length) for p in pieces(log) for a in arrivals(p, "m")] == [
        (3, PIECE_BYTES),
        (3 + PIECE_BYTES, PIECE_BYTES),
        (3 + 2 * PIECE_BYTES, 700_000 - 2 * PIECE_BYTES),
    ]


def test_a_piece_kept_for_later_is_what_arrived() -> None:
    for request in (
        AppendRequest(run=RUN, metrics=MetricBatch(source="s", columns=[points([1.0]).columns("a", 4)])),
        AppendRequest(run=RUN, log=LogChunk(log="log", offset=4, data=b"text")),
    ):
        (item,) = arrivals(request, "m")
        assert piece_of(RUN, item) == request


@pytest.mark.parametrize(("names", "reason"), [(sources(2), "TOO_MANY_SOURCES"), (logs(2), "TOO_MANY_LOGS")])
def test_a_run_has_a_bounded_number_of_sources_and_logs(names: Names, reason: str) -> None:
    for name in ("a", "b", "a"):
        names.check(RUN, name)
    with pytest.raises(ResourceExhausted) as caught:
        names.check(RUN, "c")
    assert caught.value.reason == reason
    names.check(RUN, "b")
    names.check(RUN + "2", "c")


def test_a_longer_piece_with_the_same_beginning_has_another_id() -> None:
    short = AppendRequest(run=RUN, log=LogChunk(log="log", data=b"a")).SerializeToString()
    longer = AppendRequest(run=RUN, log=LogChunk(log="log", data=b"ab")).SerializeToString()
    assert message_id(short) != message_id(longer)
