"""Blobs to and from the store, by presigned URL: in parallel, only what is missing, verified.

The URLs come from `registry.BlobService`; the bytes never pass a service.
"""

import asyncio
import hashlib
import os
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeVar

import httpx

from stellwerk import blob_store, packs, translate
from stellwerk.blob_store import Calls, Changed, Corrupt, Meter, Refused, in_parallel
from stellwerk.errors import StellwerkError
from stellwerk.pack import LocalFile
from stellwerk.progress import Advance
from stellwerk_protos.common.v1 import common_pb2
from stellwerk_protos.registry.v1 import blobs_pb2

T = TypeVar("T")
PARALLEL = 8
BATCH = 1_000
_PACKS_PARALLEL = 3
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
    calls: Calls,
    workspace: str,
    todo: Sequence[tuple[LocalFile, blobs_pb2.Upload]],
    advance: Advance,
) -> None:
    """Puts the files; raises `StellwerkError` for the first that cannot be put."""

    async def put(file: LocalFile, offer: blobs_pb2.Upload) -> None:
        meter = Meter(advance)
        for attempt in range(_ATTEMPTS):
            try:
                await blob_store.put(http, calls, workspace, file.source, file.size_bytes, offer, meter)
            except (OSError, httpx.TransportError, Refused, Changed, StellwerkError) as error:
                failure = _put_error(error, file.path)
                if attempt == _ATTEMPTS - 1 or not _may_pass(error, failure):
                    raise failure from error
            else:
                return
            await asyncio.sleep(0.2 * 2**attempt)
            again = await missing(prepare, workspace, [file])
            if not again:
                return meter.reach(file.size_bytes)
            offer = again[0][1]

    async def put_pack(files: Sequence[LocalFile]) -> None:
        meter = Meter(advance)
        for attempt in range(_ATTEMPTS):
            try:
                return await packs.put(http, calls, workspace, files, meter)
            except (OSError, httpx.TransportError, Refused, Changed) as error:
                failure = _put_error(error, str(error) if isinstance(error, Changed) else files[0].path)
                if attempt == _ATTEMPTS - 1 or not _may_pass(error, failure):
                    raise failure from error
            await asyncio.sleep(0.2 * 2**attempt)

    offers = {file.sha256: offer for file, offer in todo}
    packed, single = packs.split([file for file, _ in todo])
    await in_parallel((put_pack(files) for files in packed), _PACKS_PARALLEL)
    await in_parallel((put(file, offers[file.sha256]) for file in single), PARALLEL)


async def download(
    http: httpx.AsyncClient,
    prepare: PrepareDownloads,
    workspace: str,
    files: Sequence[common_pb2.File],
    folder: Path,
    advance: Advance,
    *,
    overwrite: bool = True,
) -> None:
    """Writes the files below `folder`; each appears whole and verified, or not at all.

    What is there already with the right content is not fetched again. Without `overwrite` nothing is
    written if some file is there with another content (`LOCAL_FILES_DIFFER`). Links are made at the end.
    """

    async def get(file: common_pb2.File, url: str) -> None:
        place, meter = folder / safe_path(file.path), Meter(advance)
        mode = 0o755 if file.executable else 0o644

        async def url_of() -> str:
            request = blobs_pb2.PrepareDownloadsRequest(parent=workspace, sha256=[file.sha256])
            return (await prepare(request)).downloads[0].url

        for attempt in range(_ATTEMPTS):
            try:
                if file.size_bytes > blob_store.RANGE_BYTES:
                    await blob_store.get_in_ranges(
                        http, url_of, file.sha256, file.size_bytes, place, meter, mode
                    )
                else:
                    await blob_store.get(http, url, file.sha256, place, meter, mode)
            except (OSError, httpx.TransportError, Refused, Corrupt) as error:
                failure = _get_error(error, file.path, place)
                if attempt == _ATTEMPTS - 1 or not _may_pass(error, failure):
                    raise failure from error
            else:
                return meter.reach(file.size_bytes)
            await asyncio.sleep(0.2 * 2**attempt)
            url = await url_of()

    links = [file for file in files if file.link_target]
    wanted = [file for file in files if not file.link_target]
    there = await asyncio.to_thread(lambda: {file.path for file in wanted if _is_there(file, folder)})
    if not overwrite:
        await asyncio.to_thread(_check_free, [file for file in wanted if file.path not in there], folder)
    advance(sum(file.size_bytes for file in wanted if file.path in there))

    async def get_pack(
        members: Sequence[blobs_pb2.Download], named: Mapping[str, list[common_pb2.File]]
    ) -> None:
        for attempt in range(_ATTEMPTS):
            try:
                contents = await packs.get(http, members)
                files = [file for digest in contents for file in named[digest]]
                return await asyncio.to_thread(_write_all, files, contents, folder, advance)
            except (OSError, httpx.TransportError, Refused, Corrupt) as error:
                first = named[members[0].sha256][0].path
                failure = _get_error(error, first, folder / first)
                if attempt == _ATTEMPTS - 1 or not _may_pass(error, failure):
                    raise failure from error
            await asyncio.sleep(0.2 * 2**attempt)
            digests = [member.sha256 for member in members]
            request = blobs_pb2.PrepareDownloadsRequest(parent=workspace, sha256=digests, packs=True)
            members = (await prepare(request)).downloads

    for batch in _batches([file for file in wanted if file.path not in there]):
        # One blob may be several files.
        named: dict[str, list[common_pb2.File]] = {}
        for file in batch:
            named.setdefault(file.sha256, []).append(file)
        request = blobs_pb2.PrepareDownloadsRequest(parent=workspace, sha256=list(named), packs=True)
        found = (await prepare(request)).downloads
        packed = packs.by_pack([item for item in found if item.packed])
        await in_parallel((get_pack(members, named) for members in packed), _PACKS_PARALLEL)
        single = [(file, item.url) for item in found if not item.packed for file in named[item.sha256]]
        await in_parallel((get(file, url) for file, url in single), PARALLEL)

    for file in links:
        _link(file, folder)


def _write_all(
    files: Sequence[common_pb2.File], contents: Mapping[str, bytes], folder: Path, advance: Advance
) -> None:
    """Writes small files; each appears whole or not at all."""
    for file in files:
        place = folder / safe_path(file.path)
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_name(f".{place.name[:100]}.{secrets.token_hex(4)}.part")
        try:
            part.write_bytes(contents[file.sha256])
            part.chmod(0o755 if file.executable else 0o644)
            os.replace(part, place)
        finally:
            part.unlink(missing_ok=True)
        advance(file.size_bytes)


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


def _check_free(files: Sequence[common_pb2.File], folder: Path) -> None:
    """Raises `StellwerkError` for files whose place is taken."""
    taken = [file.path for file in files if os.path.lexists(folder / safe_path(file.path))]
    if taken:
        more = f" and {len(taken) - 1:,} more" if len(taken) > 1 else ""
        raise StellwerkError(
            "LOCAL_FILES_DIFFER",
            f"{folder / taken[0]}{more} would be overwritten: what is there is something else.",
            "Choose another folder, or overwrite them (`--overwrite`, in Python `overwrite=True`).",
            code="ALREADY_EXISTS",
        )


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


def _batches(items: Sequence[T]) -> Iterable[Sequence[T]]:
    return (items[start : start + BATCH] for start in range(0, len(items), BATCH))


def _may_pass(error: Exception, failure: StellwerkError) -> bool:
    """Whether another try may do better."""
    if isinstance(error, Refused):
        return error.may_pass and failure.reason != "BLOB_STORE_FULL"
    # What was put together wrongly, or given up in the meantime, is begun anew.
    return isinstance(error, httpx.TransportError) or failure.reason in ("PARTS_MISSING", "UPLOAD_NOT_FOUND")


def _put_error(error: Exception, path: str) -> StellwerkError:
    if isinstance(error, StellwerkError) and error.reason != "DIGEST_MISMATCH":
        return error
    if isinstance(error, Refused):
        return translate.from_blob_store(error.response, path)
    if isinstance(error, OSError):
        return _local_error(path, error)
    if isinstance(error, Changed | StellwerkError):
        return StellwerkError(
            "FILE_CHANGED", f"{path} changed while it was being uploaded.", "Try again.", code="ABORTED"
        )
    return translate.blob_store_silent(error, path)


def _get_error(error: Exception, path: str, place: Path) -> StellwerkError:
    if isinstance(error, Refused):
        return translate.from_blob_store(error.response, path)
    if isinstance(error, OSError):
        return _local_error(str(place), error)
    if isinstance(error, Corrupt):
        return StellwerkError(
            "BLOB_CORRUPT",
            f"What the blob store holds for {path} is not what was uploaded.",
            "Upload the file again.",
            code="DATA_LOSS",
        )
    return translate.blob_store_silent(error, path)


def _local_error(path: str, error: OSError) -> StellwerkError:
    return StellwerkError(
        "LOCAL_FILE_ERROR",
        f"{path} cannot be read or written: {error.strerror}.",
        "Check its mode and the space on the disk.",
        code="FAILED_PRECONDITION",
    )
