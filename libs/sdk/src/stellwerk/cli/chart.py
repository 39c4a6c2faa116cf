"""A metric as a line of blocks: enough to see whether it falls."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stellwerk.points import Point

_BLOCKS = "▁▂▃▄▅▆▇█"
_WIDTH = 60


def spark(points: Sequence["Point"], width: int = _WIDTH) -> str:
    """The values from first to last; a gap where a part holds no number."""
    if not points:
        return ""
    count = min(width, len(points))
    parts = [
        points[index * len(points) // count : (index + 1) * len(points) // count] for index in range(count)
    ]
    means = [_mean([point.value for point in part]) for part in parts]
    finite = [mean for mean in means if mean is not None]
    if not finite:
        return " " * count
    low, high = min(finite), max(finite)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low and math.isfinite(high - low) else 0.0
    return "".join(" " if mean is None else _BLOCKS[round((mean - low) * scale)] for mean in means)


def _mean(values: Sequence[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return sum(value / len(finite) for value in finite) if finite else None
