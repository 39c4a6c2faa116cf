"""Points of metrics, unpacked from the columns in which they travel."""

import struct
from typing import NamedTuple

from stellwerk.errors import invalid
from stellwerk_protos.runs.v1 import ingest_pb2, metrics_pb2

_METHODS = {
    "exact": metrics_pb2.SAMPLING_EXACT,
    "lttb": metrics_pb2.SAMPLING_LTTB,
    "min-max": metrics_pb2.SAMPLING_MIN_MAX,
}


class Point(NamedTuple):
    """One value of one metric."""

    step: int
    time_ms: int
    """Milliseconds since 1970-01-01 UTC."""
    value: float


class Series(NamedTuple):
    """Points of one metric of one run."""

    run: str
    """The full name."""
    metric: str
    total: int
    """How many points the metric has; `points` may be fewer."""
    points: list[Point]


def sampling(method: str) -> metrics_pb2.Sampling.ValueType:
    """The way to make a history shorter, by name."""
    if method not in _METHODS:
        raise invalid(
            "SAMPLING_UNKNOWN", f"There is no sampling {method!r}.", f"Use one of {', '.join(_METHODS)}."
        )
    return _METHODS[method]


def unpack(columns: ingest_pb2.MetricColumns) -> list[Point]:
    """The points in the order stored."""
    count = len(columns.steps) // 8
    return [
        Point(*point)
        for point in zip(
            struct.unpack(f"<{count}q", columns.steps),
            struct.unpack(f"<{count}q", columns.times),
            struct.unpack(f"<{count}d", columns.values),
            strict=True,
        )
    ]
