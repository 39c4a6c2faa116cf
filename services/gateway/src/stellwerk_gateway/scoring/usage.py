"""What a replica says that it uses, in the header `x-stellwerk-usage` of the answer to a probe."""

import json
from dataclasses import dataclass, fields
from typing import Self


@dataclass(frozen=True, slots=True)
class Usage:
    """Sums since the start of the replica, but for the memory, which is that of now."""

    cpu_seconds: float = 0.0
    memory_bytes: int = 0
    # Calls of `run`, and requests that they had.
    calls: int = 0
    requests: int = 0

    @classmethod
    def parse(cls, text: bytes) -> Self | None:
        """None for what is no such header."""
        try:
            document = json.loads(text)
            found = {field.name: float(document[field.name]) for field in fields(cls)}
        except (ValueError, KeyError, TypeError):
            return None
        if not all(0 <= value < 2**53 for value in found.values()):
            return None
        whole = {name: int(found[name]) for name in ("memory_bytes", "calls", "requests")}
        return cls(cpu_seconds=found["cpu_seconds"], **whole)
