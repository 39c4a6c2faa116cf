"""Points in packed columns, the chunks that hold them, and the summary of a series.

Columns stay packed (little-endian, 8 bytes an item) from the write-ahead file to
the reader; only the summary looks at values.
"""

import math
import sys
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

from stellwerk_protos.runs.v1.ingest_pb2 import MetricColumns

ITEM_BYTES = 8
CHUNK_POINTS = 8_192
# A chunk below this grows with the next points; a larger one stays as it is.
_SMALL_POINTS = 512


@dataclass(frozen=True)
class Points:
    """Consecutive points: int64 steps, int64 times in milliseconds, doubles."""

    steps: bytes = b""
    times: bytes = b""
    values: bytes = b""

    def __len__(self) -> int:
        return len(self.values) // ITEM_BYTES

    def __add__(self, other: "Points") -> "Points":
        return Points(self.steps + other.steps, self.times + other.times, self.values + other.values)

    def slice(self, start: int, end: int | None = None) -> "Points":
        """The points from `start` up to but not including `end`."""
        part = slice(start * ITEM_BYTES, None if end is None else end * ITEM_BYTES)
        return Points(self.steps[part], self.times[part], self.values[part])

    def columns(self, metric: str, first: int) -> MetricColumns:
        """As a message."""
        return MetricColumns(
            metric=metric, first_sequence=first, steps=self.steps, times=self.times, values=self.values
        )


def join(parts: Iterable[Points]) -> Points:
    """All points in order, copied once."""
    parts = list(parts)
    if len(parts) == 1:
        return parts[0]
    return Points(
        b"".join(part.steps for part in parts),
        b"".join(part.times for part in parts),
        b"".join(part.values for part in parts),
    )


@dataclass(frozen=True)
class Chunk:
    """Stored points of one metric from index `first` on.

    Each write to a run has a version, counted from 1; a mark (version, number of
    points) says how far the chunk was filled by then, so that a reader who has seen
    all up to one version can be given exactly the rest.
    """

    metric: str
    first: int
    points: Points
    marks: tuple[tuple[int, int], ...]

    @property
    def version(self) -> int:
        """When it was last extended."""
        return self.marks[-1][0]

    def length_at(self, version: int) -> int:
        """How many points it held when `version` had been written."""
        return max((count for mark, count in self.marks if mark <= version), default=0)

    def between(self, since: int, until: int) -> MetricColumns | None:
        """The points written after version `since` and not after `until`, None for none."""
        start, end = self.length_at(since), self.length_at(until)
        if start == end:
            return None
        return self.points.slice(start, end).columns(self.metric, self.first + start)


@dataclass
class Series:
    """What is known about one metric of one run without its points; times in milliseconds since 1970."""

    metric: str
    count: int = 0
    minimum: float = math.nan
    maximum: float = math.nan
    last_step: int = 0
    last_time: int = 0
    last: float = math.nan
    # The index of the first point of the last chunk.
    tail: int = 0
    # By source, the number of points stored.
    next: dict[str, int] = field(default_factory=dict)

    @property
    def tail_is_small(self) -> bool:
        """Whether the next points go into the last chunk."""
        return 0 < self.count - self.tail < _SMALL_POINTS

    def append(self, points: Points, tail: Chunk | None, version: int) -> list[Chunk]:
        """Counts the points in and returns the chunks to store, the extended tail first."""
        self._summarise(points)
        chunks, start = [], 0
        if tail is not None:
            start = min(CHUNK_POINTS - len(tail.points), len(points))
            extended = tail.points + points.slice(0, start)
            chunks.append(Chunk(self.metric, tail.first, extended, (*tail.marks, (version, len(extended)))))
        for begin in range(start, len(points), CHUNK_POINTS):
            part = points.slice(begin, begin + CHUNK_POINTS)
            chunks.append(Chunk(self.metric, self.count + begin, part, ((version, len(part)),)))
        self.count += len(points)
        self.tail = chunks[-1].first
        return chunks

    def _summarise(self, points: Points) -> None:
        values = unpack("d", points.values)
        numbers = [value for value in (*values, self.minimum, self.maximum) if not math.isnan(value)]
        self.minimum, self.maximum = min(numbers, default=math.nan), max(numbers, default=math.nan)
        self.last_step = int(unpack("q", points.steps[-ITEM_BYTES:])[0])
        self.last_time = int(unpack("q", points.times[-ITEM_BYTES:])[0])
        self.last = values[-1]


def unpack(code: str, data: bytes) -> "array[float]":
    """The items of a packed column; `code` is "q" for int64, "d" for double."""
    items: array[float] = array(code, data)
    if sys.byteorder == "big":
        items.byteswap()
    return items


def pack(code: str, items: Iterable[float]) -> bytes:
    """A packed column."""
    column: array[float] = array(code, items)
    if sys.byteorder == "big":
        column.byteswap()
    return column.tobytes()
