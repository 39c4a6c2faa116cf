"""Reads write-ahead files by column, which is how points travel.

A script logs the same metrics again and again, so most records look alike: what one of
them looks like is worked out once, and others are then unpacked whole, by one call
(twice as fast as point by point, measured with 100 metrics a record).
"""

import struct
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stellwerk import wal

_MAXIMUM_LAYOUTS = 1_000


@dataclass
class Column:
    """Points of one metric, in the order logged."""

    steps: "array[int]" = field(default_factory=lambda: array("q"))
    times: "array[int]" = field(default_factory=lambda: array("q"))
    values: "array[float]" = field(default_factory=lambda: array("d"))


@dataclass
class Piece:
    """Whole records of a file: their points by metric, their notes with times, and the offset after them."""

    columns: dict[str, Column]
    notes: list[tuple[int, wal.Note]]
    end: int


@dataclass
class _Layout:
    """Records of the same metrics in the same order; `rows` are those not yet in columns."""

    names: tuple[str, ...]
    heads: tuple[bytes, ...]
    form: struct.Struct
    repeats: bool
    rows: list[tuple[Any, ...]] = field(default_factory=list)

    @classmethod
    def of(cls, record: wal.Record) -> "_Layout":
        names = tuple(name for name, _, _ in record.points)
        heads = tuple(wal.name_head(name) for name in names)
        form = struct.Struct("<q" + "".join(f"{len(head)}sqd" for head in heads))
        return cls(names, heads, form, repeats=len(set(names)) < len(names))


class Reader:
    """Reads pieces of one file; remembers what its records look like."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._layouts: dict[tuple[int, bytes], _Layout] = {}

    def read(
        self, offset: int, limit_bytes: int = wal.READ_BYTES, *, until: int | None = None
    ) -> Piece | None:
        """What `wal.read` gives, by column; None when no whole record follows.

        Raises `WalError` for a damaged first record; what is whole before a damaged one comes first.
        """
        data = wal.load(self._path, offset, limit_bytes, until)
        piece = Piece({}, [], offset)
        # By metric, the layout that has rows of it: another one waits until those are in columns.
        owners: dict[str, _Layout] = {}
        position = 0
        try:
            for start, end in wal.spans(data):
                self._take(data, start, end, piece, owners)
                position = end
        except wal.WalError:
            if not position:
                raise
        finally:
            _flush(piece, owners)
        piece.end = offset + position
        return piece if position else None

    def _take(self, data: bytes, start: int, end: int, piece: Piece, owners: dict[str, _Layout]) -> None:
        key = wal.record_key(data, start, end)
        layout = self._layouts.get(key)
        row = layout.form.unpack_from(data, start) if layout is not None else ()
        if layout is None or row[1::3] != layout.heads:
            record = wal.unpack(data, start, end)
            if record.note is not None:
                piece.notes.append((record.time_ms, record.note))
                return
            if not record.points:
                return
            if len(self._layouts) >= _MAXIMUM_LAYOUTS:
                self._layouts.clear()
            layout = self._layouts[key] = _Layout.of(record)
            row = layout.form.unpack_from(data, start)
        if not layout.rows:
            if any(name in owners for name in layout.names):
                _flush(piece, owners)
            owners.update(dict.fromkeys(layout.names, layout))
        layout.rows.append(row)
        if layout.repeats:
            _flush(piece, owners)


def _flush(piece: Piece, owners: dict[str, _Layout]) -> None:
    """Moves the rows of all layouts into columns."""
    for layout in {id(layout): layout for layout in owners.values()}.values():
        # Of each point three items after the time: name, step, value.
        moments, *items = zip(*layout.rows, strict=True)
        times = array("q", moments)
        for index, name in enumerate(layout.names):
            column = piece.columns.get(name)
            if column is None:
                column = piece.columns[name] = Column()
            column.times.extend(times)
            column.steps.extend(items[3 * index + 1])
            column.values.extend(items[3 * index + 2])
        layout.rows.clear()
    owners.clear()
