"""Write-ahead files: what a process logged, on its own disk before anything travels.

Standard library only, because user code imports it in any environment. The format is
in docs/interfaces.md, "Write-ahead files".
"""

import errno
import os
import secrets
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

SUFFIX = ".wal"
READ_BYTES = 1 << 20
_LENGTH = struct.Struct("<I")
_TIME = struct.Struct("<q")
_NAME_LENGTH = struct.Struct("<H")
_POINT = struct.Struct("<qd")
# No writer makes a longer record; a longer length means that the file is damaged.
_MAXIMUM_RECORD_BYTES = 64 << 20


class Record(NamedTuple):
    """What one call logged: milliseconds since 1970 and (name, step, value) a point."""

    time_ms: int
    points: list[tuple[str, int, float]]


class WalError(Exception):
    """A file that no writer of ours has written like this."""


def pack(time_ms: int, points: Iterable[tuple[str, int, float]]) -> bytes:
    """One record; `struct.error` for a step that is no int64 or a name over 65,535 bytes."""
    parts = [_TIME.pack(time_ms)]
    for name, step, value in points:
        encoded = name.encode()
        parts += (_NAME_LENGTH.pack(len(encoded)), encoded, _POINT.pack(step, value))
    body = b"".join(parts)
    return _LENGTH.pack(len(body)) + body


class Writer:
    """Appends records to a new file `<pid>-<8 hex>.wal`. Not thread-safe; raises `OSError`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._file = os.open(self.path, flags, 0o600)
        self._size_bytes = 0

    def append(self, time_ms: int, points: Iterable[tuple[str, int, float]]) -> None:
        """Writes one record of (name, step, value); after an error the file ends with the last whole one."""
        record = pack(time_ms, points)
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


def read(path: str | Path, offset: int, limit_bytes: int = READ_BYTES) -> tuple[list[Record], int]:
    """The whole records from `offset` on, about `limit_bytes` of them, and the offset after them.

    A torn last record is left for later. Raises `WalError` for a damaged file.
    """
    with open(path, "rb") as file:
        file.seek(offset)
        data = file.read(limit_bytes)
        if len(data) >= _LENGTH.size and (first := _length(data, 0)) > len(data):
            data += file.read(first - len(data))
    records = []
    position = 0
    while position + _LENGTH.size <= len(data):
        try:
            end = position + _length(data, position)
            if end > len(data):
                break
            records.append(_unpack(data, position + _LENGTH.size, end))
        except WalError:
            if not records:
                raise
            break  # what was whole comes first; the next read tells
        position = end
    return records, offset + position


def _length(data: bytes, position: int) -> int:
    length: int = _LENGTH.unpack_from(data, position)[0]
    if not _TIME.size <= length <= _MAXIMUM_RECORD_BYTES:
        raise WalError(f"a record of {length} bytes")
    return _LENGTH.size + length


def _unpack(data: bytes, position: int, end: int) -> Record:
    try:
        (time_ms,) = _TIME.unpack_from(data, position)
        position += _TIME.size
        points = []
        while position < end:
            (length,) = _NAME_LENGTH.unpack_from(data, position)
            position += _NAME_LENGTH.size
            name = data[position : position + length].decode()
            step, value = _POINT.unpack_from(data, position + length)
            points.append((name, step, value))
            position += length + _POINT.size
    except (struct.error, UnicodeDecodeError) as error:
        raise WalError(f"a record that cannot be read: {error}") from error
    if position != end:
        raise WalError("a record whose points do not fill it")
    return Record(time_ms, points)
