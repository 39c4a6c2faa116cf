"""What a replica says that it uses, in the header `x-stellwerk-usage` of the answer to a probe."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

_MOST_BATCHES = 32
_MOST = 2**53


@dataclass(frozen=True, slots=True)
class Usage:
    """Sums since the start of the replica, but for the memory, which is that of now."""

    cpu_seconds: float = 0.0
    memory_bytes: int = 0
    # Calls of `run`, and requests that they had.
    calls: int = 0
    requests: int = 0
    # Calls by the most requests that are counted together.
    batches: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: bytes) -> Self | None:
        """None for what is no such header."""
        try:
            document = json.loads(text)
            seconds = float(document["cpu_seconds"])
            whole = {name: int(document[name]) for name in ("memory_bytes", "calls", "requests")}
            batches = _batches(document.get("batches", {}))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            return None
        if not all(0 <= value < _MOST for value in (seconds, *whole.values())):
            return None
        return cls(cpu_seconds=seconds, batches=batches, **whole)


def _batches(found: Mapping[str, Any]) -> dict[int, int]:
    batches = {int(most): int(count) for most, count in found.items()}
    if len(batches) > _MOST_BATCHES or not all(
        0 < most < 2**31 and 0 <= count < _MOST for most, count in batches.items()
    ):
        raise ValueError("no counts of batches")
    return batches
