"""Reading by column gives what reading record by record gives."""

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stellwerk import wal
from stellwerk.wal_columns import Reader

# Few names, some of equal length and one that begins like another, so that records look alike by chance.
NAMES = st.sampled_from(["a", "b", "ab", "abc", "loss", "ä", "", "x" * 300])
POINTS = st.lists(st.tuples(NAMES, st.integers(-(2**63), 2**63 - 1), st.floats(width=64)), max_size=4)
NOTES = st.builds(wal.Note, st.integers(1, 10), NAMES, st.integers(0, 9), NAMES, NAMES)
RECORDS = st.lists(st.tuples(st.integers(0, 2**40), st.one_of(POINTS, NOTES)), max_size=30)


def packed(time_ms: int, what: "list[tuple[str, int, float]] | wal.Note") -> bytes:
    return wal.pack_note(time_ms, what) if isinstance(what, wal.Note) else wal.pack(time_ms, what)


def bits(value: float) -> bytes:
    """NaN equals itself."""
    return struct.pack("<d", value)


@settings(max_examples=200)
@given(records=RECORDS, limit=st.integers(1, 600))
def test_columns_hold_what_the_records_hold(
    records: "list[tuple[int, list[tuple[str, int, float]] | wal.Note]]",
    limit: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.getbasetemp() / "columns.wal"
    path.write_bytes(b"".join(packed(*record) for record in records) + b"\x20\0\0\0torn")
    reader, offset = Reader(path), 0
    while True:
        one_by_one, end = wal.read(path, offset, limit)
        piece = reader.read(offset, limit)
        if piece is None:
            assert not one_by_one
            break
        assert piece.end == end
        assert piece.notes == [(r.time_ms, r.note) for r in one_by_one if r.note is not None]
        expected: dict[str, list[tuple[int, int, bytes]]] = {}
        for record in one_by_one:
            for name, step, value in record.points:
                expected.setdefault(name, []).append((step, record.time_ms, bits(value)))
        found = {
            name: list(zip(column.steps, column.times, map(bits, column.values), strict=True))
            for name, column in piece.columns.items()
        }
        assert found == expected
        offset = end


def test_what_is_whole_before_a_damage_comes_first(tmp_path: Path) -> None:
    path, good = tmp_path / "damaged.wal", wal.pack(1, [("a", 0, 0.5)])
    for damage in (b"\1\0\0\0x", struct.pack("<IqH", 14, 0, 9) + b"abcd"):
        path.write_bytes(good + good + damage)
        reader = Reader(path)
        piece = reader.read(0)
        assert piece is not None
        assert (piece.end, len(piece.columns["a"].values)) == (2 * len(good), 2)
        with pytest.raises(wal.WalError):
            reader.read(piece.end)


@given(points=POINTS, time_ms=st.integers(0, 2**40))
def test_a_prepared_form_packs_the_same_bytes(points: list[tuple[str, int, float]], time_ms: int) -> None:
    form = wal.Form([name for name, _, _ in points])
    assert form.pack(time_ms, [p[1] for p in points], [p[2] for p in points]) == wal.pack(time_ms, points)
