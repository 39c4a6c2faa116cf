"""Write-ahead files of metrics (docs/interfaces.md). Standard library only: it runs beside user code.

A record is one `write(2)`: u32 length of the rest, i64 time in ms since 1970, then per point u16 length
of the name, name in UTF-8, i64 step, f64 value, all little-endian.
"""

import os
import secrets
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

SUFFIX = ".wal"
_LENGTH = struct.Struct("<I")
_TIME = struct.Struct("<q")
_NAME_LENGTH = struct.Struct("<H")
_POINT = struct.Struct("<qd")


class Record(NamedTuple):
    """The points of one call."""

    time_ms: int
    points: list[tuple[str, int, float]]
    """(metric, step, value)"""


class Writer:
    """Appends records to a new file `<pid>-<8 hex>.wal`. Not thread-safe; raises `OSError`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}"
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self._size = 0

    def append(self, time_ms: int, points: Iterable[tuple[str, int, float]]) -> None:
        """Appends one record; after an error the file ends with the last whole one."""
        record = encode(time_ms, points)
        try:
            written = os.write(self._descriptor, record)
        except OSError:
            os.ftruncate(self._descriptor, self._size)
            raise
        if written != len(record):
            os.ftruncate(self._descriptor, self._size)
            raise OSError(28, "No space left on device", str(self.path))
        self._size += written

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)


def encode(time_ms: int, points: Iterable[tuple[str, int, float]]) -> bytes:
    """One record."""
    parts = [_TIME.pack(time_ms)]
    for name, step, value in points:
        text = name.encode()
        parts += (_NAME_LENGTH.pack(len(text)), text, _POINT.pack(step, value))
    rest = b"".join(parts)
    return _LENGTH.pack(len(rest)) + rest


def read(path: Path, offset: int, limit_bytes: int = 4 * 1024 * 1024) -> tuple[list[Record], int]:
    """Whole records from `offset` on and the offset after them; at least one if one is there."""
    records: list[Record] = []
    with path.open("rb") as file:
        file.seek(offset)
        while file.tell() - offset < limit_bytes or not records:
            header = file.read(_LENGTH.size)
            if len(header) < _LENGTH.size:
                break
            rest = file.read(_LENGTH.unpack(header)[0])
            if len(rest) < _LENGTH.unpack(header)[0]:
                break
            records.append(_decode(rest))
    consumed = sum(_LENGTH.size + _TIME.size + _points_size(record) for record in records)
    return records, offset + consumed


def _points_size(record: Record) -> int:
    return sum(_NAME_LENGTH.size + len(name.encode()) + _POINT.size for name, _, _ in record.points)


def _decode(rest: bytes) -> Record:
    points: list[tuple[str, int, float]] = []
    position = _TIME.size
    while position < len(rest):
        (length,) = _NAME_LENGTH.unpack_from(rest, position)
        position += _NAME_LENGTH.size
        name = rest[position : position + length].decode()
        position += length
        step, value = _POINT.unpack_from(rest, position)
        position += _POINT.size
        points.append((name, step, value))
    return Record(_TIME.unpack_from(rest)[0], points)
