"""What a snapshot is called and how large its list may be."""

from collections.abc import Sequence

from stellwerk_platform.content import check_files, digest_of
from stellwerk_platform.errors import InvalidArgument
from stellwerk_protos.common.v1.common_pb2 import File
from stellwerk_protos.runs.v1.snapshots_pb2 import Snapshot

# The list is one document (16 MB) and one journal event in JSON (a NATS message of 8 MB).
_LIST_BYTES = 4 * 1024 * 1024


def new_snapshot(parent: str, files: Sequence[File], creator: str) -> Snapshot:
    """The snapshot of these files, named by its content; raises `InvalidArgument`."""
    snapshot = Snapshot(files=check_files(files), creator=creator)
    if snapshot.ByteSize() > _LIST_BYTES:
        raise InvalidArgument(
            "SNAPSHOT_LIST_TOO_LARGE",
            f"The list of {len(files):,} files has {snapshot.ByteSize():,} bytes, over {_LIST_BYTES:,}.",
            "Leave folders out with .amlignore, or register them as a dataset.",
        )
    snapshot.name = f"{parent}/snapshots/{digest_of(snapshot.files)}"
    snapshot.size_bytes = sum(file.size_bytes for file in files)
    return snapshot
