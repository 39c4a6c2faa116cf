"""Write-ahead files and what is shipped from them: torn ends, restarts, redelivery."""

import math
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stellwerk import wal
from stellwerk.shipping import LogTail, MetricFolder, MetricTail
from stellwerk_protos.runs.v1.ingest_pb2 import MetricBatch, RecordBatch

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
POINTS = st.tuples(NAMES, st.integers(-(2**63), 2**63 - 1), st.floats())
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
NOTES = st.builds(wal.Note, st.integers(1, 10), NAMES, st.integers(-(2**63), 2**63 - 1), TEXTS, TEXTS)
LOGGED = st.one_of(st.lists(POINTS, max_size=4), NOTES)
RECORDS = st.lists(st.tuples(st.integers(0, 2**62), LOGGED), max_size=10)
Series = dict[str, list[tuple[int, int, bytes]]]
Batches = list[MetricBatch | RecordBatch]


def packed(time_ms: int, logged: wal.Note | list[tuple[str, int, float]]) -> bytes:
    return wal.pack_note(time_ms, logged) if isinstance(logged, wal.Note) else wal.pack(time_ms, logged)


def stored_notes(batches: Batches) -> list[tuple[int, wal.Note]]:
    """What a service keeps that stores each sequence once."""
    kept: dict[int, tuple[int, wal.Note]] = {}
    for batch in batches:
        if not isinstance(batch, RecordBatch):
            continue
        for sequence, item in enumerate(batch.records, batch.first_sequence):
            note = wal.Note(item.kind, item.name, item.step, item.value, item.artifact)
            already = kept.setdefault(sequence, (item.time, note))
            assert already == (item.time, note), "the same sequence means the same record"
    assert sorted(kept) == list(range(len(kept))), "no gap"
    return [kept[sequence] for sequence in range(len(kept))]


def stored(batches: Batches) -> Series:
    """What a service keeps that stores each (metric, sequence) once."""
    kept: dict[str, dict[int, tuple[int, int, bytes]]] = {}
    for batch in batches:
        if not isinstance(batch, MetricBatch):
            continue
        for column in batch.columns:
            steps = struct.unpack(f"<{len(column.steps) // 8}q", column.steps)
            times = struct.unpack(f"<{len(steps)}q", column.times)
            values = [column.values[i * 8 : i * 8 + 8] for i in range(len(steps))]
            for i, point in enumerate(zip(steps, times, values, strict=True)):
                already = kept.setdefault(column.metric, {}).setdefault(column.first_sequence + i, point)
                assert already == point, "the same sequence means the same point"
    for points in kept.values():
        assert sorted(points) == list(range(len(points))), "no gap"
    return {metric: [points[i] for i in range(len(points))] for metric, points in kept.items()}


def expected(records: list[tuple[int, wal.Note | list[tuple[str, int, float]]]]) -> Series:
    series: Series = {}
    for time_ms, logged in records:
        points = [] if isinstance(logged, wal.Note) else logged
        for name, step, value in points:
            series.setdefault(name, []).append((step, time_ms, struct.pack("<d", value)))
    return series


@given(RECORDS, st.data())
def test_whatever_is_torn_cut_or_sent_twice_each_point_and_record_arrives_once(
    tmp_path_factory: pytest.TempPathFactory,
    records: list[tuple[int, wal.Note | list[tuple[str, int, float]]]],
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("wal")
    path = folder / "1-0a0b0c0d.wal"
    whole = b"".join(packed(time_ms, logged) for time_ms, logged in records)
    cuts = [*sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=5))), len(whole)]
    sent: Batches = []
    tail = MetricTail(path)
    for cut in cuts:
        path.write_bytes(whole[:cut])
        while (batch := tail.next()) is not None:
            sent.append(batch.payload)
            if data.draw(st.booleans()):
                tail.acknowledge(batch.end)
        match data.draw(st.sampled_from(["go on", "reconnect", "restart"])):
            case "reconnect":
                tail.rewind()
            case "restart":
                tail.save()
                tail = MetricTail(path)
    tail.rewind()
    while (batch := tail.next()) is not None:
        sent.append(batch.payload)
    assert stored(sent) == expected(records)
    assert stored_notes(sent) == [item for item in records if isinstance(item[1], wal.Note)]


def test_a_prepared_point_is_the_same_record() -> None:
    assert wal.Prefix.of("größe").pack(5, -3, 0.25) == wal.pack(5, [("größe", -3, 0.25)])


def test_the_writer_makes_what_the_reader_reads(tmp_path: Path) -> None:
    writer = wal.Writer(tmp_path)
    writer.append(5, [("loss", 1, math.nan), ("größe", -1, math.inf)])
    writer.append(6, [])
    writer.close()
    (tail,) = MetricFolder(tmp_path).tails()
    records, end = wal.read(tail.path, 0)
    assert [record.time_ms for record in records] == [5, 6]
    assert records[0].points[1] == ("größe", -1, math.inf)
    assert end == tail.path.stat().st_size
    batch = tail.next()
    assert batch is not None
    assert batch.payload.source + wal.SUFFIX == tail.path.name


def test_a_record_longer_than_one_read_still_comes(tmp_path: Path) -> None:
    path = tmp_path / "1-00000000.wal"
    points = [(f"metric-{i}", i, float(i)) for i in range(100)]
    path.write_bytes(wal.pack(1, points) * 3)
    first, offset = wal.read(path, 0, limit_bytes=50)
    assert [len(record.points) for record in first] == [100]
    assert len(wal.read(path, offset, limit_bytes=1 << 20)[0]) == 2


@pytest.mark.parametrize(
    "rest",
    [
        b"\x03\0\0\0abc",
        b"\xff\xff\xff\xff",
        b"\x0c\0\0\0" + b"\0" * 8 + b"\xff\xff\1\0",
        b"\x0b\0\0\0" + b"\0" * 8 + b"\x09\0a",
    ],
)
def test_a_damaged_file_says_so_and_keeps_what_was_whole(tmp_path: Path, rest: bytes) -> None:
    path = tmp_path / "1-00000000.wal"
    good = wal.pack(1, [("a", 1, 1.0)])
    path.write_bytes(good + rest)
    tail = MetricTail(path)
    assert tail.next() is not None
    with pytest.raises(wal.WalError):
        wal.read(path, len(good))
    assert tail.next() is None


def test_a_log_goes_on_where_it_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "std_log.txt"
    tail = LogTail(path, "user_logs/std_log.txt")
    assert not tail.has_more()
    assert tail.next() is None
    path.write_bytes(b"one\n")
    batch = tail.next()
    assert batch is not None
    tail.acknowledge(batch.end)
    tail.save()
    path.write_bytes(b"one\ntwo\n")
    again = LogTail(path, "user_logs/std_log.txt").next()
    assert again is not None
    assert (again.payload.offset, again.payload.data) == (4, b"two\n")


def test_a_name_that_no_service_takes_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "1-00000000.wal"
    path.write_bytes(wal.pack(1, [("x" * 501, 1, 1.0), ("", 1, 1.0), ("ok", 1, 1.0)]))
    batch = MetricTail(path).next()
    assert batch is not None
    assert isinstance(batch.payload, MetricBatch)
    assert [column.metric for column in batch.payload.columns] == ["ok"]
