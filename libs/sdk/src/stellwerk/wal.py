"""Write-ahead files: what a process logged, on its own disk before anything travels.

Standard library only, because user code imports it in any environment. The format is
in docs/interfaces.md, "Write-ahead files".
"""

import errno
import os
import secrets
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

SUFFIX = ".wal"
READ_BYTES = 1 << 20
_LENGTH = struct.Struct("<I")
_TIME = struct.Struct("<q")
_NAME_LENGTH = struct.Struct("<H")
_POINT = struct.Struct("<qd")
_HEAD = struct.Struct("<Iq")
# Kind, step, length of the name, length of the artifact's path.
_NOTE = struct.Struct("<BqHH")
# Stands where the length of a first name would: no name of a metric is that long.
_NOTE_MARK = 0xFFFF
LONGEST_NAME_BYTES = _NOTE_MARK - 1
# No writer makes a longer record; a longer length means that the file is damaged.
_MAXIMUM_RECORD_BYTES = 64 << 20


class Note(NamedTuple):
    """What is no scalar point: the fields of `stellwerk.runs.v1.Record`."""

    kind: int
    """A `RecordKind`."""
    name: str
    step: int
    value: str
    artifact: str = ""


class Record(NamedTuple):
    """What one call logged: milliseconds since 1970 and either points or a note."""

    time_ms: int
    points: list[tuple[str, int, float]]
    """(name, step, value) each."""
    note: Note | None = None


class WalError(Exception):
    """A file that no writer of ours has written like this."""


def pack(time_ms: int, points: Iterable[tuple[str, int, float]]) -> bytes:
    """One record; `struct.error` for a step that is no int64 or a name over 65,534 bytes."""
    parts = [_TIME.pack(time_ms)]
    for name, step, value in points:
        encoded = name.encode()
        if len(encoded) > LONGEST_NAME_BYTES:
            raise struct.error("the name is too long")
        parts += (_NAME_LENGTH.pack(len(encoded)), encoded, _POINT.pack(step, value))
    body = b"".join(parts)
    return _LENGTH.pack(len(body)) + body


def pack_note(time_ms: int, note: Note) -> bytes:
    """One record that holds a note; `struct.error` for what does not fit."""
    name, artifact, value = note.name.encode(), note.artifact.encode(), note.value.encode()
    fields = _NOTE.pack(note.kind, note.step, len(name), len(artifact))
    body = b"".join((_NAME_LENGTH.pack(_NOTE_MARK), fields, name, artifact, value))
    return _HEAD.pack(_TIME.size + len(body), time_ms) + body


class Prefix(NamedTuple):
    """The start of a record with one point, prepared for a metric that is logged again and again."""

    length: int
    name: bytes

    @classmethod
    def of(cls, name: str) -> "Prefix":
        """For one metric."""
        encoded = name.encode()
        return cls(
            _TIME.size + _NAME_LENGTH.size + len(encoded) + _POINT.size,
            name_head(name),
        )

    def pack(self, time_ms: int, step: int, value: float) -> bytes:
        """What `wal.pack` makes of the one point, in a third of the time."""
        return _HEAD.pack(self.length, time_ms) + self.name + _POINT.pack(step, value)


class Form:
    """A record of the same metrics in the same order, prepared for being logged again and again."""

    def __init__(self, names: Iterable[str]) -> None:
        heads = [name_head(name) for name in names]
        self._struct = struct.Struct("<Iq" + "".join(f"{len(head)}sqd" for head in heads))
        self._length = self._struct.size - _LENGTH.size
        # Of each point three items: the name, and places for step and value.
        self._items: list[bytes | int | float] = [item for head in heads for item in (head, 0, 0.0)]

    def pack(self, time_ms: int, steps: list[int], numbers: list[float]) -> bytes:
        """What `wal.pack` makes of the points, in a quarter of the time."""
        items = self._items.copy()
        items[1::3] = steps
        items[2::3] = numbers
        return self._struct.pack(self._length, time_ms, *items)


class Writer:
    """Appends records to a new file `<pid>-<8 hex>.wal`. Not thread-safe; raises `OSError`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._file = os.open(self.path, flags, 0o600)
        self._size_bytes = 0

    def append(self, time_ms: int, points: Iterable[tuple[str, int, float]]) -> None:
        """Writes one record of (name, step, value)."""
        self.write(pack(time_ms, points))

    def write(self, record: bytes) -> None:
        """Writes a packed record; after an error the file ends with the last whole one."""
        try:
            written = os.write(self._file, record)
        except OSError:
            os.ftruncate(self._file, self._size_bytes)
            raise
        if written != len(record):
            os.ftruncate(self._file, self._size_bytes)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        self._size_bytes += written

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)


def read(
    path: str | Path, offset: int, limit_bytes: int = READ_BYTES, *, until: int | None = None
) -> tuple[list[Record], int]:
    """The whole records from `offset` on, about `limit_bytes` of them, and the offset after them.

    `until` reads exactly the records up to that offset instead, which an earlier call returned. A torn
    last record is left for later. Raises `WalError` for a damaged file.
    """
    data = load(path, offset, limit_bytes, until)
    records: list[Record] = []
    position = 0
    try:
        for start, end in spans(data):
            records.append(unpack(data, start, end))
            position = end
    except WalError:
        if not records:
            raise
        # What was whole comes first; the next read tells.
    return records, offset + position


def load(path: str | Path, offset: int, limit_bytes: int, until: int | None) -> bytes:
    """The bytes that `read` looks at; a first record that is longer than the limit comes whole."""
    with open(path, "rb") as file:
        file.seek(offset)
        data = file.read(limit_bytes if until is None else until - offset)
        if len(data) >= _LENGTH.size and (first := _length(data, 0)) > len(data):
            data += file.read(first - len(data))
    return data


def spans(data: bytes) -> Iterator[tuple[int, int]]:
    """Where the bodies of whole records begin and end; raises `WalError` at a length that cannot be."""
    position = 0
    while position + _LENGTH.size <= len(data):
        end = position + _length(data, position)
        if end > len(data):
            return
        yield position + _LENGTH.size, end
        position = end


def record_key(data: bytes, start: int, end: int) -> tuple[int, bytes]:
    """The length of a record's body and its first name: records of equal keys probably look alike."""
    first = start + _TIME.size
    (length,) = _NAME_LENGTH.unpack_from(data, first) if first + _NAME_LENGTH.size <= end else (0,)
    return end - start, data[first : first + _NAME_LENGTH.size + length]


def name_head(name: str) -> bytes:
    """How a metric's name stands in a record, its length before it."""
    encoded = name.encode()
    return _NAME_LENGTH.pack(len(encoded)) + encoded


def _length(data: bytes, position: int) -> int:
    length: int = _LENGTH.unpack_from(data, position)[0]
    if not _TIME.size <= length <= _MAXIMUM_RECORD_BYTES:
        raise WalError(f"a record of {length} bytes")
    return _LENGTH.size + length


def unpack(data: bytes, position: int, end: int) -> Record:
    """The record whose body lies there; raises `WalError`."""
    try:
        (time_ms,) = _TIME.unpack_from(data, position)
        position += _TIME.size
        points: list[tuple[str, int, float]] = []
        while position < end:
            (length,) = _NAME_LENGTH.unpack_from(data, position)
            position += _NAME_LENGTH.size
            if length == _NOTE_MARK:
                return Record(time_ms, points, _unpack_note(data[position:end]))
            name = data[position : position + length].decode()
            step, value = _POINT.unpack_from(data, position + length)
            points.append((name, step, value))
            position += length + _POINT.size
    except (struct.error, UnicodeDecodeError) as error:
        raise WalError(f"a record that cannot be read: {error}") from error
    if position != end:
        raise WalError("a record whose points do not fill it")
    return Record(time_ms, points)


def _unpack_note(data: bytes) -> Note:
    kind, step, name_length, artifact_length = _NOTE.unpack_from(data)
    artifact_start = _NOTE.size + name_length
    value_start = artifact_start + artifact_length
    if value_start > len(data):
        raise WalError("a note whose texts do not fit into it")
    name = data[_NOTE.size : artifact_start].decode()
    artifact = data[artifact_start:value_start].decode()
    return Note(kind, name, step, data[value_start:].decode(), artifact)
