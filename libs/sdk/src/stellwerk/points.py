"""Points of metrics, unpacked from the columns in which they travel."""

import struct
from typing import NamedTuple

from stellwerk_protos.runs.v1 import ingest_pb2


class Point(NamedTuple):
    """One value of one metric."""

    step: int
    time_ms: int
    """Milliseconds since 1970-01-01 UTC."""
    value: float


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
