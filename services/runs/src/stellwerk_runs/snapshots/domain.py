"""What a snapshot is called, which files it may have, and where their list is kept.

A short list is part of the snapshot; a long one is a blob, the manifest, because a
document has 16 MB and a journal event is one message of 8 MB. Which of the two the
client sent makes no difference: the same files are the same snapshot.
"""

from collections.abc import Sequence

from google.protobuf.message import DecodeError

from stellwerk_platform.content import check_files, check_sha256, digest_of
from stellwerk_platform.errors import InvalidArgument
from stellwerk_protos.common.v1.common_pb2 import File
from stellwerk_protos.runs.v1.snapshots_pb2 import CreateSnapshotRequest, Manifest, Snapshot

LISTED_FILES = 5_000
_LIST_BYTES = 4 * 1024 * 1024
MANIFEST_BYTES = 256 * 1024 * 1024


def check_request(request: CreateSnapshotRequest) -> None:
    """Raises `InvalidArgument` unless there is either a list of files or a manifest."""
    if request.manifest:
        check_sha256(request.manifest)
        if request.files:
            raise InvalidArgument(
                "FILES_AND_MANIFEST", "A list of files and a manifest.", "Send one of the two."
            )


def new_snapshot(parent: str, files: Sequence[File], creator: str) -> Snapshot:
    """The snapshot of a list of files, named by its content; raises `InvalidArgument`."""
    snapshot = Snapshot(files=check_files(files, maximum=None, links=True), creator=creator)
    if len(files) > LISTED_FILES or snapshot.ByteSize() > _LIST_BYTES:
        raise InvalidArgument(
            "SNAPSHOT_LIST_TOO_LARGE",
            f"The list of {len(files):,} files has {snapshot.ByteSize():,} bytes; up to {LISTED_FILES:,} "
            f"files and {_LIST_BYTES:,} bytes fit in a request.",
            "Upload the list as a blob and send its digest as `manifest`; `stellwerk` does so by itself.",
        )
    return _named(parent, snapshot, snapshot.files)


def from_manifest(parent: str, manifest: str, body: bytes, creator: str) -> tuple[Snapshot, Sequence[File]]:
    """The snapshot of an uploaded manifest, and its files; raises `InvalidArgument`."""
    try:
        files = check_files(Manifest.FromString(body).files, maximum=None, links=True)
    except DecodeError:
        raise InvalidArgument(
            "INVALID_MANIFEST", f"The blob {manifest} holds no serialized Manifest.", "Upload it again."
        ) from None
    if len(files) <= LISTED_FILES:
        listed = Snapshot(files=files, creator=creator)
        if listed.ByteSize() <= _LIST_BYTES:
            return _named(parent, listed, files), files
    return _named(parent, Snapshot(manifest=manifest, creator=creator), files), files


def _named(parent: str, snapshot: Snapshot, files: Sequence[File]) -> Snapshot:
    snapshot.name = f"{parent}/snapshots/{digest_of(files)}"
    snapshot.size_bytes = sum(file.size_bytes for file in files)
    snapshot.file_count = len(files)
    return snapshot
