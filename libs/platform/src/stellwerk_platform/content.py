"""File lists of snapshots, datasets and models: what paths may be, and their digest."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from itertools import accumulate

from stellwerk_platform.errors import InvalidArgument
from stellwerk_protos.common.v1.common_pb2 import File

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PATH_LENGTH = 4_096
# The list is part of the resource's journal event, which is one NATS message of at most 8 MB.
MAXIMUM_FILES = 20_000


def check_files(
    files: Sequence[File], *, maximum: int | None = MAXIMUM_FILES, links: bool = False
) -> list[File]:
    """The files sorted by path; raises `InvalidArgument` for an empty list or a file that may not be.

    Symbolic links are taken only with `links`. They point into the root, and nothing
    lies below one, so that no path leads out of the root.
    """
    if not files:
        raise InvalidArgument(
            "NO_FILES", "The list of files is empty.", "Name a folder or file with content."
        )
    if maximum is not None and len(files) > maximum:
        raise InvalidArgument(
            "TOO_MANY_FILES",
            f"{len(files):,} files are more than {maximum:,}.",
            "Leave files out (.amlignore), or pack them into an archive.",
        )
    for file in files:
        _check_file(file, links)
    ordered = sorted(files, key=lambda file: file.path)
    seen: set[str] = set()
    for file in ordered:
        folders = accumulate(file.path.split("/"), lambda folder, part: f"{folder}/{part}")
        if taken := next((path for path in folders if path in seen), None):
            raise InvalidArgument(
                "INVALID_FILE", f"{file.path!r} collides with {taken!r}.", "Name each file once."
            )
        seen.add(file.path)
    return ordered


def _check_file(file: File, links: bool) -> None:
    check_path(file.path)
    if file.link_target:
        _check_link(file, links)
        return
    check_sha256(file.sha256)
    if file.size_bytes < 0:
        raise InvalidArgument(
            "INVALID_FILE", f"{file.path!r} has a negative size.", "Send its size in bytes."
        )


def _check_link(file: File, links: bool) -> None:
    if not links:
        raise InvalidArgument(
            "LINK_NOT_ALLOWED", f"{file.path!r} is a symbolic link.", "Send the file that it points to."
        )
    check_path(file.link_target)
    if file.sha256 or file.size_bytes or file.executable:
        raise InvalidArgument(
            "INVALID_FILE",
            f"{file.path!r} is a symbolic link and has content too.",
            "Leave digest, size and execute bit of a link empty.",
        )


def check_path(path: str) -> str:
    """Returns a relative, normalised path without control characters, else raises `InvalidArgument`."""
    parts = path.split("/")
    bad = (
        not path
        or len(path.encode()) > _PATH_LENGTH
        or any(part in ("", ".", "..") for part in parts)
        or any(ord(character) < 32 or character == "\x7f" for character in path)
        or "\\" in path
    )
    if bad:
        raise InvalidArgument(
            "INVALID_PATH",
            f"{path[:200]!r} is not a relative, normalised path.",
            "Use names separated by '/', without '..', backslashes or control characters.",
        )
    return path


def check_sha256(digest: str) -> str:
    """Returns 64 hexadecimal digits, else raises `InvalidArgument`."""
    if not _SHA256.fullmatch(digest):
        raise InvalidArgument(
            "INVALID_DIGEST", f"{digest[:80]!r} is no SHA-256.", "Send 64 digits of 0-9 and a-f."
        )
    return digest


def digest_of(files: Iterable[File]) -> str:
    """SHA-256 in hexadecimal over modes, paths and contents (docs/interfaces.md, resource names)."""
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.path):
        mode = "l" if file.link_target else "x" if file.executable else "-"
        digest.update(f"{mode}\0{file.path}\0{file.link_target or file.sha256}\n".encode())
    return digest.hexdigest()
