"""How a large blob is cut into parts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stellwerk_platform.blobs import Part
from stellwerk_platform.errors import InvalidArgument

# S3 takes 10,000 parts of an object.
_MOST_PARTS = 10_000
_LARGEST_PART_BYTES = 5 * 1024**3
_MIB = 1024 * 1024
# Fewer are not worth the reading of the whole at the end.
_FEWEST_PARTS = 4


@dataclass(frozen=True)
class Upload:
    """The upload in parts that a blob's document describes."""

    id: str
    size_bytes: int
    part_size_bytes: int
    # Whether the parts were put together, or are about to be: only then may what the store has under the
    # digest be a whole that nobody has checked.
    claimed: bool = False
    # Whether the store is known to have that whole.
    assembled: bool = False

    @classmethod
    def of(cls, document: Mapping[str, Any] | None) -> "Upload | None":
        """Out of the document of a blob; None for a blob that travels in one piece."""
        found = document.get("upload") if document else None
        return cls(**found) if found else None

    @property
    def part_count(self) -> int:
        """How many parts there are; the last may be shorter."""
        return -(-self.size_bytes // self.part_size_bytes)

    def part_bytes(self, number: int) -> int:
        """Bytes of the part with this number, from 1."""
        return min(self.part_size_bytes, self.size_bytes - (number - 1) * self.part_size_bytes)

    def whole(self, parts: list[Part]) -> list[Part]:
        """Those of the parts that have the size that they should have."""
        return [
            part
            for part in parts
            if 1 <= part.number <= self.part_count and part.size_bytes == self.part_bytes(part.number)
        ]


def part_size(size_bytes: int, smallest_bytes: int) -> int:
    """Bytes of the parts of a blob; 0 for one that travels in one piece. Raises `InvalidArgument`."""
    if size_bytes > _MOST_PARTS * _LARGEST_PART_BYTES:
        raise InvalidArgument(
            "BLOB_TOO_LARGE",
            f"A blob of {size_bytes:,} bytes.",
            f"S3 takes up to {_MOST_PARTS:,} parts of 5 GiB: cut the file.",
        )
    if size_bytes <= _FEWEST_PARTS * smallest_bytes:
        return 0
    needed = -(-size_bytes // _MOST_PARTS)
    return max(smallest_bytes, -(-needed // _MIB) * _MIB)


@dataclass(frozen=True)
class Check:
    """How far the check of a whole blob is."""

    done: bool
    checked_bytes: int
