"""Blobs to and from the store, by presigned URL: in parallel, only what is missing, verified.

The URLs come from `registry.BlobService`; the bytes never pass a service.
"""

import asyncio
import hashlib
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeVar

import httpx

from stellwerk import translate
from stellwerk.errors import StellwerkError
from stellwerk.pack import LocalFile
from stellwerk.progress import Advance
from stellwerk_protos.common.v1 import common_pb2
from stellwerk_protos.registry.v1 import blobs_pb2

T = TypeVar("T")
PARALLEL = 8
BATCH = 500
_CHUNK_BYTES = 1024 * 1024
_ATTEMPTS = 5

PrepareUploads = Callable[[blobs_pb2.PrepareUploadsRequest], Awaitable[blobs_pb2.PrepareUploadsResponse]]
PrepareDownloads = Callable[
    [blobs_pb2.PrepareDownloadsRequest], Awaitable[blobs_pb2.PrepareDownloadsResponse]
]


async def missing(
    prepare: PrepareUploads, workspace: str, files: Iterable[LocalFile]
) -> list[tuple[LocalFile, blobs_pb2.Upload]]:
    """Which files have to travel, and where to."""
    by_digest = {file.sha256: file for file in files if not file.link_target}
    result = []
    for batch in _batches(list(by_digest.values())):
        blobs = [blobs_pb2.Blob(sha256=file.sha256, size_bytes=file.size_bytes) for file in batch]
        answer = await prepare(blobs_pb2.PrepareUploadsRequest(parent=workspace, blobs=blobs))
        result += [(by_digest[upload.sha256], upload) for upload in answer.uploads]
    return result


async def upload(
    http: httpx.AsyncClient,
    prepare: PrepareUploads,
    workspace: str,
    todo: Sequence[tuple[LocalFile, blobs_pb2.Upload]],
    advance: Advance,
) -> None:
    """Puts the files; raises `StellwerkError` for the first that cannot be put."""

    async def put(file: LocalFile, target: blobs_pb2.Upload) -> None:
        for attempt in range(_ATTEMPTS):
            last = attempt == _ATTEMPTS - 1
            try:
                response = await http.put(
                    target.url,
                    content=_chunks(file.source, file.size_bytes),
                    headers={**target.headers, "content-length": str(file.size_bytes)},
                )
            except OSError as error:
                raise _local_error(file.path, error) from error
            except (httpx.TransportError, _FileChanged) as error:
                if last or isinstance(error, _FileChanged):
                    raise _put_error(error, file.path) from error
            else:
                if response.is_success:
                    return advance(file.size_bytes)
                refusal = translate.from_blob_store(response, file.path)
                # 403: the URL is too old by now; 5xx: the store has a bad moment.
                if last or (response.status_code != 403 and response.status_code < 500):
                    raise refusal
                if refusal.reason == "BLOB_STORE_FULL":
                    raise refusal
            await asyncio.sleep(0.2 * 2**attempt)
            again = await missing(prepare, workspace, [file])
            if not again:
                return advance(file.size_bytes)
            target = again[0][1]

    await _in_parallel(put(file, target) for file, target in todo)


async def download(
    http: httpx.AsyncClient,
    prepare: PrepareDownloads,
    workspace: str,
    files: Sequence[common_pb2.File],
    folder: Path,
    advance: Advance,
) -> None:
    """Writes the files below `folder`; each appears whole and verified, or not at all.

    What is there already with the right content is not fetched again. Links are made at the end.
    """

    async def get(file: common_pb2.File, url: str) -> None:
        place = folder / safe_path(file.path)
        for attempt in range(_ATTEMPTS):
            try:
                await _fetch(http, url, file, place)
            except OSError as error:
                raise _local_error(str(place), error) from error
            except httpx.TransportError as error:
                if attempt == _ATTEMPTS - 1:
                    raise translate.blob_store_silent(error, file.path) from error
                await asyncio.sleep(0.2 * 2**attempt)
            else:
                return advance(file.size_bytes)

    links = [file for file in files if file.link_target]
    wanted = [file for file in files if not file.link_target]
    there = await asyncio.to_thread(lambda: {file.path for file in wanted if _is_there(file, folder)})
    advance(sum(file.size_bytes for file in wanted if file.path in there))
    for batch in _batches([file for file in wanted if file.path not in there]):
        # One blob may be several files.
        digests = list(dict.fromkeys(file.sha256 for file in batch))
        answer = await prepare(blobs_pb2.PrepareDownloadsRequest(parent=workspace, sha256=digests))
        urls = {item.sha256: item.url for item in answer.downloads}
        await _in_parallel(get(file, urls[file.sha256]) for file in batch)

    for file in links:
        _link(file, folder)


def _is_there(file: common_pb2.File, folder: Path) -> bool:
    """Whether the file was written before; its mode is put right."""
    place = folder / safe_path(file.path)
    try:
        if place.is_symlink() or place.stat().st_size != file.size_bytes:
            return False
        with place.open("rb") as stream:
            same = hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256
        if same:
            place.chmod(0o755 if file.executable else 0o644)
        return same
    except OSError:
        return False


def _link(file: common_pb2.File, folder: Path) -> None:
    place, target = folder / safe_path(file.path), folder / safe_path(file.link_target)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        place.symlink_to(os.path.relpath(target, place.parent))
    except OSError as error:
        raise _local_error(str(place), error) from error


def safe_path(path: str) -> PurePosixPath:
    """A relative path that stays below its folder, whatever a service says."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts:
        raise StellwerkError("PATH_UNSAFE", f"The path {path!r} leaves the folder.", code="INTERNAL")
    return pure


async def _fetch(http: httpx.AsyncClient, url: str, file: common_pb2.File, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(f".{place.name[:100]}.{secrets.token_hex(4)}.part")
    digest = hashlib.sha256()
    try:
        async with http.stream("GET", url) as response:
            if not response.is_success:
                await response.aread()
                raise translate.from_blob_store(response, file.path)
            with part.open("wb") as out:
                async for chunk in response.aiter_bytes(_CHUNK_BYTES):
                    digest.update(chunk)
                    await asyncio.to_thread(out.write, chunk)
        if digest.hexdigest() != file.sha256:
            raise StellwerkError(
                "BLOB_CORRUPT",
                f"What the blob store holds for {file.path} is not what was uploaded.",
                "Upload the file again.",
                code="DATA_LOSS",
            )
        part.chmod(0o755 if file.executable else 0o644)
        os.replace(part, place)
    finally:
        part.unlink(missing_ok=True)


class _FileChanged(Exception):
    """The file is shorter than it was when it was hashed."""


async def _chunks(path: Path, size_bytes: int) -> AsyncIterator[bytes]:
    left = size_bytes
    with await asyncio.to_thread(path.open, "rb") as file:
        while left:
            chunk = await asyncio.to_thread(file.read, min(_CHUNK_BYTES, left))
            if not chunk:
                raise _FileChanged
            left -= len(chunk)
            yield chunk


async def _in_parallel(jobs: Iterable[Awaitable[None]]) -> None:
    """Runs `PARALLEL` at a time; the first error ends all."""
    waiting = iter(jobs)

    async def work() -> None:
        for job in waiting:
            await job

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(PARALLEL):
                group.create_task(work())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


def _batches(items: Sequence[T]) -> Iterable[Sequence[T]]:
    return (items[start : start + BATCH] for start in range(0, len(items), BATCH))


def _put_error(error: Exception, path: str) -> StellwerkError:
    if isinstance(error, _FileChanged):
        return StellwerkError(
            "FILE_CHANGED", f"{path} changed while it was being uploaded.", "Try again.", code="ABORTED"
        )
    return translate.blob_store_silent(error, path)


def _local_error(path: str, error: OSError) -> StellwerkError:
    return StellwerkError(
        "LOCAL_FILE_ERROR",
        f"{path} cannot be read or written: {error.strerror}.",
        "Check its mode and the space on the disk.",
        code="FAILED_PRECONDITION",
    )
