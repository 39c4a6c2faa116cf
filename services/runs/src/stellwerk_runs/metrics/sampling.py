"""Makes histories shorter: LTTB (Steinarsson 2013) or min-max, by tsdownsample over packed columns.

What is no finite number is a gap in a line: its first point of each gap is kept, so
that a chart breaks its line there, and the rest of the gap is left out.
"""

import numpy as np
from numpy.typing import NDArray
from tsdownsample import LTTBDownsampler, MinMaxDownsampler

from stellwerk_protos.runs.v1.metrics_pb2 import SAMPLING_MIN_MAX
from stellwerk_runs.metrics.domain import CHUNK_POINTS, Points, join

# Points that are looked at together; a longer series is brought down block by block first.
BLOCK_POINTS = 32 * CHUNK_POINTS
# Before LTTB, min-max keeps this many times the points wanted (MinMaxLTTB, van der Donckt 2023).
_PRESELECT = 4
_FEWEST = 3
_Indices = NDArray[np.int64]
_LTTB = LTTBDownsampler()  # type: ignore[no-untyped-call]  # its __init__ has no annotations
_MIN_MAX = MinMaxDownsampler()  # type: ignore[no-untyped-call]


def shorten(points: Points, size: int, sampling: int) -> Points:
    """At most `size` (3 or more) of the points, the first and the last among them."""
    if len(points) <= size:
        return points
    values = np.frombuffer(points.values, "<f8")
    is_number = np.isfinite(values)
    if is_number.all():
        return _take(points, _choose(values, size, sampling))
    gaps = np.flatnonzero(~is_number & np.concatenate(([True], is_number[:-1])))
    gaps = _spread(gaps, size // 2)
    numbers = np.flatnonzero(is_number)
    room = size - len(gaps)
    if len(numbers) > room:
        numbers = numbers[_choose(values[numbers], room, sampling)] if room >= _FEWEST else numbers[:room]
    return _take(points, np.sort(np.concatenate((numbers, gaps))))


class Shortener:
    """Brings a series of `count` points down to `size` while it comes in blocks of BLOCK_POINTS."""

    def __init__(self, count: int, size: int, sampling: int) -> None:
        self._count = count
        self._size = size
        self._sampling = sampling
        self._parts: list[Points] = []

    def feed(self, block: Points) -> None:
        """The next points."""
        if self._count > BLOCK_POINTS:
            share = self._size * _PRESELECT * len(block) // self._count
            block = shorten(block, max(share, _FEWEST + 1), SAMPLING_MIN_MAX)
        self._parts.append(block)

    def result(self) -> Points:
        """What is left of it."""
        return shorten(join(self._parts or [Points()]), self._size, self._sampling)


def _choose(values: NDArray[np.float64], size: int, sampling: int) -> _Indices:
    """Indices of `size` finite values (one less where min-max needs pairs), first and last among them."""
    # Steps may repeat or go back, so that buckets are of equally many points, not of equal width.
    values = np.ascontiguousarray(values, dtype=np.float64)
    if sampling != SAMPLING_MIN_MAX:
        return np.asarray(_LTTB.downsample(values, n_out=size), np.int64)
    inner = max(size - 2, 2) // 2 * 2
    if size < 4:
        return np.unique(np.array([0, int(values.argmax()), len(values) - 1]))
    chosen = np.asarray(_MIN_MAX.downsample(values[1:-1], n_out=inner), np.int64) + 1
    return np.unique(np.concatenate(([0], chosen, [len(values) - 1])))


def _spread(indices: _Indices, most: int) -> _Indices:
    if len(indices) <= most:
        return indices
    return indices[np.linspace(0, len(indices) - 1, most).astype(np.int64)]


def _take(points: Points, indices: _Indices) -> Points:
    return Points(
        np.frombuffer(points.steps, "<i8")[indices].tobytes(),
        np.frombuffer(points.times, "<i8")[indices].tobytes(),
        np.frombuffer(points.values, "<f8")[indices].tobytes(),
    )
