"""From local files to batches for `runs.IngestService`: what to send next, and what is acknowledged.

A tail follows one file. Its acknowledged position lies beside the file, so that
whoever ships next goes on there; what was sent and not acknowledged is sent again,
with the same sequence numbers, and stored once.
"""

import json
import logging
import os
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from stellwerk import wal
from stellwerk_protos.runs.v1 import ingest_pb2

log = logging.getLogger(__name__)
LOG_CHUNK_BYTES = 256 * 1024
_MAXIMUM_NAME_CHARACTERS = 500
_POSITION_SUFFIX = ".position"
P = TypeVar("P")


@dataclass(frozen=True)
class Position:
    """A place in a file; in a write-ahead file also the number of points before it, by metric."""

    offset: int = 0
    sequences: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> "Position":
        """The position stored at `path`, the beginning if there is none that can be read."""
        try:
            stored = json.loads(path.read_text())
            return cls(int(stored["offset"]), {str(k): int(v) for k, v in stored["sequences"].items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return cls()

    def save(self, path: Path) -> None:
        """Stores it; a crash leaves the old or the new one."""
        temporary = path.with_name(path.name + ".new")
        temporary.write_text(json.dumps({"offset": self.offset, "sequences": dict(self.sequences)}))
        os.replace(temporary, path)


@dataclass(frozen=True)
class Batch(Generic[P]):
    """A payload and the position that its acknowledgement reaches."""

    payload: P
    end: Position


class Tail(Generic[P]):
    """Follows one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._position_path = path.with_name(path.name + _POSITION_SUFFIX)
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

    def __init__(self, path: Path, log_path: str) -> None:
        super().__init__(path)
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
        chunk = ingest_pb2.LogChunk(log=self._log_path, offset=start.offset, data=data)
        return Batch(chunk, Position(start.offset + len(data)))


class MetricTail(Tail[ingest_pb2.MetricBatch]):
    """Follows a write-ahead file."""

    _is_damaged = False

    def _next(self, start: Position) -> Batch[ingest_pb2.MetricBatch] | None:
        try:
            records, offset = wal.read(self.path, start.offset)
        except FileNotFoundError:
            return None
        except wal.WalError as error:
            # What lies behind cannot be found any more; everything before it has been handed out.
            if not self._is_damaged:
                log.error("%s is damaged at byte %d: %s", self.path, start.offset, error)
            self._is_damaged = True
            return None
        if not records:
            return None
        batch, sequences = columns(records, start.sequences)
        batch.source = self.path.name.removesuffix(wal.SUFFIX)
        return Batch(batch, Position(offset, sequences))


def columns(
    records: list[wal.Record], sequences: Mapping[str, int]
) -> tuple[ingest_pb2.MetricBatch, dict[str, int]]:
    """The points by metric, and the sequences after them. Names that no service takes are left out."""
    by_metric: dict[str, tuple[array[int], array[int], array[float]]] = {}
    for time_ms, points in records:
        for name, step, value in points:
            column = by_metric.get(name)
            if column is None:
                column = by_metric[name] = (array("q"), array("q"), array("d"))
            column[0].append(step)
            column[1].append(time_ms)
            column[2].append(value)
    batch, after = ingest_pb2.MetricBatch(), dict(sequences)
    for name, (steps, times, values) in by_metric.items():
        if not 1 <= len(name) <= _MAXIMUM_NAME_CHARACTERS:
            log.warning("A metric name of %d characters was left out", len(name))
            continue
        first = after.get(name, 0)
        batch.columns.add(
            metric=name,
            first_sequence=first,
            steps=_little_endian(steps),
            times=_little_endian(times),
            values=_little_endian(values),
        )
        after[name] = first + len(steps)
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
