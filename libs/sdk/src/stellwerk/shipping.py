"""From local files to batches for `runs.IngestService`: what to send next, and what is acknowledged.

A tail follows one file. Its acknowledged position lies beside the file, so that
whoever ships next goes on there; what was sent and not acknowledged is sent again,
with the same sequence numbers, and stored once.
"""

import hashlib
import json
import logging
import os
import stat
import time
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from stellwerk import wal
from stellwerk.names import portable
from stellwerk.wal_columns import Column, Reader
from stellwerk_protos.runs.v1 import ingest_pb2

log = logging.getLogger(__name__)
LOG_CHUNK_BYTES = 256 * 1024
_MAXIMUM_NAME_CHARACTERS = 500
_POSITION_SUFFIX = ".position"
# `runs` takes 1,000 logs of a run.
_MOST_LOGS = 900
P = TypeVar("P")


@dataclass(frozen=True)
class Position:
    """A place in a file; in a write-ahead file also the number of points before it, by metric.

    Points and other records travel in batches of their own: where both lie in one part of a file, the
    points up to `points_offset` (0: none beyond `offset`) have been handed out, its `records` not yet.
    """

    offset: int = 0
    sequences: Mapping[str, int] = field(default_factory=dict)
    records: int = 0
    """How many records that are no points lie before `offset`."""
    points_offset: int = 0

    @classmethod
    def load(cls, path: Path) -> "Position":
        """The position stored at `path`, the beginning if there is none that can be read."""
        try:
            stored = json.loads(path.read_text())
            sequences = {str(k): int(v) for k, v in stored["sequences"].items()}
            return cls(
                int(stored["offset"]),
                sequences,
                int(stored.get("records", 0)),
                int(stored.get("points_offset", 0)),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return cls()

    def save(self, path: Path) -> None:
        """Stores it; a crash leaves the old or the new one."""
        temporary = path.with_name(path.name + ".new")
        temporary.write_text(json.dumps({**vars(self), "sequences": dict(self.sequences)}))
        os.replace(temporary, path)


@dataclass(frozen=True)
class Batch(Generic[P]):
    """A payload and the position that its acknowledgement reaches."""

    payload: P
    end: Position


class Tail(Generic[P]):
    """Follows one file."""

    def __init__(self, path: Path, position_path: Path | None = None) -> None:
        self.path = path
        self._position_path = position_path or path.with_name(path.name + _POSITION_SUFFIX)
        self.acknowledged = Position.load(self._position_path)
        self._read = self._saved = self.acknowledged

    def has_more(self) -> bool:
        """Whether the file is longer than what was handed out; perhaps by a torn record only."""
        try:
            return os.stat(self.path).st_size > self._read.offset
        except FileNotFoundError:
            return False

    def peek(self) -> Batch[P] | None:
        """What follows what was handed out last, None when there is nothing yet. Changes nothing, so that
        a thread may do it whose answer is then not wanted any more."""
        return self._next(self._read)

    def advance(self, batch: Batch[P]) -> None:
        """Hands out what `peek` gave."""
        self._read = batch.end

    def next(self) -> Batch[P] | None:
        """Both in one step."""
        batch = self.peek()
        if batch is not None:
            self.advance(batch)
        return batch

    def _next(self, start: Position) -> Batch[P] | None:
        raise NotImplementedError

    def rewind(self) -> None:
        """Hands out again what was not acknowledged: the connection broke."""
        self._read = self.acknowledged

    def acknowledge(self, end: Position) -> None:
        """The service has stored everything before `end`."""
        self.acknowledged = end

    def save(self) -> None:
        """Stores the acknowledged position beside the file."""
        if self.acknowledged is not self._saved:
            self.acknowledged.save(self._position_path)
            self._saved = self.acknowledged


class LogTail(Tail[ingest_pb2.LogChunk]):
    """Follows a log file; `log` is its path within the run."""

    def __init__(self, path: Path, log_path: str, position_path: Path | None = None) -> None:
        super().__init__(path, position_path)
        self._log_path = log_path

    def _next(self, start: Position) -> Batch[ingest_pb2.LogChunk] | None:
        try:
            with open(self.path, "rb") as file:
                file.seek(start.offset)
                data = file.read(LOG_CHUNK_BYTES)
        except FileNotFoundError:
            return None
        if not data:
            return None
        now_ms = time.time_ns() // 1_000_000
        chunk = ingest_pb2.LogChunk(log=self._log_path, offset=start.offset, data=data, time=now_ms)
        return Batch(chunk, Position(start.offset + len(data)))


class MetricTail(Tail[ingest_pb2.MetricBatch | ingest_pb2.RecordBatch]):
    """Follows a write-ahead file: its points, and what else was logged."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._reader = Reader(path)
        self._is_damaged = False

    def _next(self, start: Position) -> Batch[ingest_pb2.MetricBatch | ingest_pb2.RecordBatch] | None:
        until = start.points_offset if start.points_offset > start.offset else None
        try:
            found = self._reader.read(start.offset, until=until)
        except FileNotFoundError:
            return None
        except wal.WalError as error:
            # What lies behind cannot be found any more; everything before it has been handed out.
            if not self._is_damaged:
                log.error("%s is damaged at byte %d: %s", self.path, start.offset, error)
            self._is_damaged = True
            return None
        if found is None:
            return None
        source = self.path.name.removesuffix(wal.SUFFIX)
        if until is None and (found.columns or not found.notes):
            batch, sequences = columns(found.columns, start.sequences)
            batch.source = source
            if found.notes:
                return Batch(batch, Position(start.offset, sequences, start.records, found.end))
            return Batch(batch, Position(found.end, sequences, start.records))
        records = [_record(time_ms, note) for time_ms, note in found.notes]
        after = start.records + len(records)
        payload = ingest_pb2.RecordBatch(source=source, first_sequence=start.records, records=records)
        return Batch(payload, Position(found.end, start.sequences, after))


def _record(time_ms: int, note: wal.Note) -> ingest_pb2.Record:
    return ingest_pb2.Record(
        name=note.name,
        # A kind that this version does not know stays the number that it is.
        kind=note.kind,  # type: ignore[arg-type]
        step=note.step,
        time=time_ms,
        value=note.value,
        artifact=note.artifact,
    )


def append_request(
    run: str, batch: int, payload: ingest_pb2.MetricBatch | ingest_pb2.RecordBatch | ingest_pb2.LogChunk
) -> ingest_pb2.AppendRequest:
    """A payload as `runs.IngestService.Append` takes it."""
    match payload:
        case ingest_pb2.MetricBatch():
            return ingest_pb2.AppendRequest(run=run, batch=batch, metrics=payload)
        case ingest_pb2.RecordBatch():
            return ingest_pb2.AppendRequest(run=run, batch=batch, records=payload)
        case _:
            return ingest_pb2.AppendRequest(run=run, batch=batch, log=payload)


def columns(
    found: Mapping[str, Column], sequences: Mapping[str, int]
) -> tuple[ingest_pb2.MetricBatch, dict[str, int]]:
    """The points by metric, and the sequences after them. Names that no service takes are left out."""
    batch, after = ingest_pb2.MetricBatch(), dict(sequences)
    for name, column in found.items():
        if not 1 <= len(name) <= _MAXIMUM_NAME_CHARACTERS:
            log.warning("A metric name of %d characters was left out", len(name))
            continue
        first = after.get(name, 0)
        batch.columns.add(
            metric=name,
            first_sequence=first,
            steps=_little_endian(column.steps),
            times=_little_endian(column.times),
            values=_little_endian(column.values),
        )
        after[name] = first + len(column.steps)
    return batch, after


def _little_endian(items: "array[int] | array[float]") -> bytes:
    if _BIG_ENDIAN:
        items.byteswap()
    return items.tobytes()


_BIG_ENDIAN = array("H", [1]).tobytes() == b"\x00\x01"


class MetricFolder:
    """The write-ahead files of one folder, found as they appear."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tails: dict[str, MetricTail] = {}

    def tails(self) -> Iterator[MetricTail]:
        """A tail for each file, oldest first."""
        for path in sorted(self._folder.glob("*" + wal.SUFFIX)):
            if path.name not in self._tails:
                self._tails[path.name] = MetricTail(path)
        yield from self._tails.values()


class TextFolder:
    """The logs of a run outside every compute: each file below `logs`, which only ever grows."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tails: dict[str, LogTail] = {}

    def tails(self) -> Iterator[LogTail]:
        """A tail for each file, by path; more than 900 are not followed."""
        for parent, folders, names in os.walk(self._folder / "logs"):
            folders.sort()
            for path in (Path(parent, name) for name in sorted(names)):
                log_path = portable(path.relative_to(self._folder).as_posix())
                if log_path not in self._tails and len(self._tails) < _MOST_LOGS and _is_regular(path):
                    self._tails[log_path] = LogTail(path, log_path, self._position_path(log_path))
        yield from self._tails.values()

    def _position_path(self, log_path: str) -> Path:
        """Outside of `logs`, so that nothing foreign appears beside the script's files."""
        folder = self._folder / "positions"
        folder.mkdir(exist_ok=True)
        return folder / hashlib.sha256(log_path.encode()).hexdigest()[:32]


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False
