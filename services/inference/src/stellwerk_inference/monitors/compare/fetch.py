"""Brings blobs by their URLs, some ahead of who reads them, and never more than these on the disk."""

import hashlib
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from stellwerk_inference.monitors.compare.failures import CheckFailed

_TRIES, _PAUSE_SECONDS, _ANSWER_SECONDS = 4, 0.5, 30.0
_AT_A_TIME = 4
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Blob:
    """A file: its path, where its content is, and what that must be."""

    path: str
    url: str
    sha256: str


def bring(blobs: Sequence[Blob], folder: Path, at_a_time: int = _AT_A_TIME) -> Iterator[tuple[Blob, Path]]:
    """Each blob as a file that is removed once the next one is asked for; raises `CheckFailed`.

    Who stops early waits for those that are brought at the same time.
    """
    with ThreadPoolExecutor(at_a_time) as pool:
        for start in range(0, len(blobs), at_a_time):
            batch = blobs[start : start + at_a_time]
            files = [folder / str(start + index) for index in range(len(batch))]
            for blob, file in zip(batch, pool.map(_fetch, batch, files), strict=True):
                yield blob, file
                file.unlink()


def _fetch(blob: Blob, file: Path) -> Path:
    error: Exception | None = None
    for number in range(_TRIES):
        if number:
            time.sleep(_PAUSE_SECONDS * 2**number)
        try:
            if _download(blob.url, file) == blob.sha256:
                return file
            error = ValueError("the content is not what was uploaded")
        except (OSError, urllib.error.URLError) as failure:
            error = failure
    raise CheckFailed(
        "BLOB_STORE_UNAVAILABLE",
        f"{blob.path[-200:]} cannot be read from the blob store: {str(error)[:200]}",
        "Check the S3 server (`stellwerk status`), then check again.",
    )


def _download(url: str, file: Path) -> str:
    digest = hashlib.sha256()
    with urllib.request.urlopen(url, timeout=_ANSWER_SECONDS) as answer, file.open("wb") as target:
        while chunk := answer.read(_CHUNK_BYTES):
            digest.update(chunk)
            target.write(chunk)
    return digest.hexdigest()
