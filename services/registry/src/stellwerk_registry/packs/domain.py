"""What a pack is: small blobs one after the other, without gaps."""

import hashlib
from collections.abc import Sequence

from stellwerk_platform.content import check_sha256
from stellwerk_platform.errors import InvalidArgument
from stellwerk_protos.registry.v1.blobs_pb2 import Blob

MOST_BYTES = 16 * 1024 * 1024
MOST_BLOBS = 1_000


def check(pack: str, blobs: Sequence[Blob]) -> None:
    """Raises `InvalidArgument` for what cannot be a pack of these blobs."""
    if not 1 <= len(blobs) <= MOST_BLOBS:
        raise InvalidArgument(
            "INVALID_PACK", f"A pack of {len(blobs):,} blobs.", f"Put 1 to {MOST_BLOBS:,} into it."
        )
    for blob in blobs:
        if check_sha256(blob.sha256) == pack:
            raise InvalidArgument(
                "INVALID_PACK", "A pack that holds itself.", "Leave it: a single blob needs no pack."
            )
    size_bytes = sum(blob.size_bytes for blob in blobs)
    if size_bytes > MOST_BYTES or any(blob.size_bytes < 0 for blob in blobs):
        raise invalid_size(size_bytes)


def invalid_size(size_bytes: int) -> InvalidArgument:
    """The error for a pack of so many bytes."""
    return InvalidArgument(
        "INVALID_PACK", f"A pack of {size_bytes:,} bytes.", f"Put up to {MOST_BYTES:,} into it."
    )


def places(content: bytes, blobs: Sequence[Blob]) -> dict[str, tuple[int, int]]:
    """Offset and bytes by digest; raises `InvalidArgument` when the content is something else."""
    found: dict[str, tuple[int, int]] = {}
    offset = 0
    for blob in blobs:
        piece = content[offset : offset + blob.size_bytes]
        if hashlib.sha256(piece).hexdigest() != blob.sha256:
            raise _mismatch(f"does not hold {blob.sha256} at byte {offset:,}")
        found[blob.sha256] = offset, blob.size_bytes
        offset += blob.size_bytes
    if offset != len(content):
        raise _mismatch(f"has {len(content):,} bytes, of which {offset:,} are named")
    return found


def _mismatch(what: str) -> InvalidArgument:
    return InvalidArgument("PACK_MISMATCH", f"The pack {what}.", "Name what lies in it, in its order.")
