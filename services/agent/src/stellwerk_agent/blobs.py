"""Blobs between the node and the blob store: by presigned URL, verified, and kept by digest."""

import asyncio
import hashlib
import logging
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from copy import copy as shallow
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from stellwerk import blob_store, packs
from stellwerk.blob_store import Calls, Changed, Corrupt, Meter, Refused
from stellwerk_agent.calls import FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS, call
from stellwerk_agent.failure import StepFailed
from stellwerk_agent.files import check_paths, copy, link
from stellwerk_platform.errors import PlatformError
from stellwerk_protos.common.v1 import common_pb2
from stellwerk_protos.registry.v1 import blobs_pb2, blobs_pb2_grpc

log = logging.getLogger(__name__)
PARALLEL = 8
# As many as one call takes; a URL that expires while others travel is asked for again.
_BATCH = 1_000
_NAMED = 5
_FULL_SIGNS = ("space", "full", "quota", "insufficientstorage")


@dataclass(frozen=True)
class Uploaded:
    """How many blobs travelled, and the digests of files that changed before they could."""

    sent: int
    changed: set[str]


class Blobs:
    """Brings files to the node and takes them away.

    `patience_seconds` is how long the store may refuse uploads with a server error, and
    `silence_seconds` how long it may take no byte at all, before the files are given up. A platform
    that is away is waited for: nobody could be told of the end.
    """

    def __init__(
        self,
        cache: Path,
        registry: "blobs_pb2_grpc.BlobServiceAsyncStub",
        client: httpx.AsyncClient,
        patience_seconds: float = 60.0,
        silence_seconds: float = 600.0,
    ) -> None:
        self._folder = cache / "blobs"
        self._registry = registry
        self._client = client
        self._patience_seconds = patience_seconds
        self._silence_seconds = silence_seconds
        self._calls = Calls(
            partial(call, registry.PrepareUploads),
            partial(call, registry.CreatePack),
            partial(call, registry.PreparePart),
            partial(call, registry.CompleteUpload),
        )
        self._slots = asyncio.Semaphore(PARALLEL)

    def apart(self, cache: Path) -> "Blobs":
        """The same store, with a cache of its own for what nobody needs a second time."""
        other = shallow(self)
        other._folder = cache / "blobs"
        return other

    async def fetch(
        self, workspace: str, files: Sequence[common_pb2.File], target: Path, *, writable: bool
    ) -> int:
        """Copies files into a new folder and returns how many blobs had to travel."""
        check_paths(files)
        by_digest = {file.sha256: file.size_bytes for file in files if not file.link_target}
        absent = {digest: size for digest, size in by_digest.items() if not self._is_here(digest, size)}
        await self._bring(workspace, absent)
        target.mkdir(parents=True)
        await asyncio.to_thread(self._place, files, target, writable)
        return len(absent)

    async def read(self, workspace: str, digest: str) -> bytes:
        """The content of one blob that fits into memory."""
        path = self._path(digest)
        for _ in range(2):
            if path.exists():
                content = path.read_bytes()
                if hashlib.sha256(content).hexdigest() == digest:
                    return content
            await self._bring(workspace, {digest: 0})
        raise StepFailed("BLOB_DAMAGED", f"The blob {digest} cannot be kept on the node.", "Check its disk.")

    async def _bring(self, workspace: str, sizes: Mapping[str, int]) -> None:
        digests = list(sizes)
        for start in range(0, len(digests), _BATCH):
            batch = digests[start : start + _BATCH]
            await self._download_all(workspace, {digest: sizes[digest] for digest in batch})

    def _is_here(self, digest: str, size_bytes: int) -> bool:
        # A power cut can leave a file that was renamed and is not all there.
        path = self._path(digest)
        return path.exists() and path.stat().st_size == size_bytes

    def _path(self, digest: str) -> Path:
        return self._folder / digest[:2] / digest[2:]

    def _place(self, files: Sequence[common_pb2.File], target: Path, writable: bool) -> None:
        for file in files:
            if file.link_target:
                continue
            mode = (0o644 if writable else 0o444) | (0o111 if file.executable else 0)
            copy(self._path(file.sha256), target / file.path, mode)
        # Last, so that no file is ever written through a link.
        for file in files:
            if file.link_target:
                link(target, file.path, file.link_target)

    async def _download_all(self, workspace: str, sizes: Mapping[str, int]) -> None:
        downloads = await self._prepare_downloads(workspace, list(sizes))
        try:
            async with asyncio.TaskGroup() as tasks:
                for members in packs.by_pack([found for found in downloads if found.packed]):
                    tasks.create_task(self._download_pack(workspace, members))
                for download in (found for found in downloads if not found.packed):
                    tasks.create_task(self._download(workspace, download, sizes[download.sha256]))
        except ExceptionGroup as group:
            # One reason is what a run can have.
            raise group.exceptions[0] from group

    async def _prepare_downloads(self, workspace: str, digests: Sequence[str]) -> list[blobs_pb2.Download]:
        request = blobs_pb2.PrepareDownloadsRequest(
            parent=f"workspaces/{workspace}", sha256=digests, packs=True
        )
        return list((await call(self._registry.PrepareDownloads, request)).downloads)

    async def _download_pack(self, workspace: str, members: Sequence[blobs_pb2.Download]) -> None:
        delay = FIRST_DELAY_SECONDS
        async with self._slots:
            while True:
                try:
                    contents = await packs.get(self._client, members)
                    return await asyncio.to_thread(self._keep_all, contents)
                except (httpx.HTTPError, Refused, Corrupt) as error:
                    log.warning("%d small blobs did not come: %r; trying again", len(members), error)
                await asyncio.sleep(delay)
                delay = min(delay * 2, LONGEST_DELAY_SECONDS)
                members = await self._prepare_downloads(workspace, [member.sha256 for member in members])

    def _keep_all(self, contents: Mapping[str, bytes]) -> None:
        for digest, content in contents.items():
            path = self._path(digest)
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
            try:
                temporary.write_bytes(content)
                temporary.chmod(0o444)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)

    async def _download(self, workspace: str, download: blobs_pb2.Download, size_bytes: int) -> None:
        path, digest = self._path(download.sha256), download.sha256
        meter = Meter(lambda moved: None)

        async def url_of() -> str:
            (found,) = await self._prepare_downloads(workspace, [digest])
            return found.url

        delay, url = FIRST_DELAY_SECONDS, download.url
        async with self._slots:
            while True:
                try:
                    if size_bytes > blob_store.RANGE_BYTES:
                        return await blob_store.get_in_ranges(
                            self._client, url_of, digest, size_bytes, path, meter, 0o444
                        )
                    return await blob_store.get(self._client, url, digest, path, meter, 0o444)
                except (httpx.HTTPError, Refused, Corrupt) as error:
                    log.warning("Blob %s did not come: %r; trying again", digest, error)
                await asyncio.sleep(delay)
                delay = min(delay * 2, LONGEST_DELAY_SECONDS)
                url = await url_of()

    async def upload(
        self,
        workspace: str,
        files: Mapping[str, Path],
        is_same: Callable[[Path], bool] = Path.exists,
        *,
        patience_seconds: float | None = None,
    ) -> Uploaded:
        """Uploads up to 1,000 files, by digest, that the store does not have yet.

        A file for which `is_same` says that it is not any more what was hashed is given up.
        """
        sent, delay = 0, FIRST_DELAY_SECONDS
        refusal, silence = self._patience(patience_seconds)
        wanted, changed = dict(files), set[str]()
        meters = {digest: Meter(silence.end) for digest in files}
        alone = set[str]()
        while wanted:
            request = blobs_pb2.PrepareUploadsRequest(parent=f"workspaces/{workspace}")
            for digest, path in list(wanted.items()):
                if is_same(path):
                    request.blobs.add(sha256=digest, size_bytes=path.stat().st_size)
                else:
                    del wanted[digest]
                    changed.add(digest)
            uploads = await self._prepare_uploads(request, silence) if wanted else []
            results = await self._put_all(request, uploads, wanted, refusal, meters, alone)
            sent += sum(results)
            if all(results):
                break
            wanted = {u.sha256: wanted[u.sha256] for u, ok in zip(uploads, results, strict=True) if not ok}
            if any(is_same(path) for path in wanted.values()):
                refusal.check()
                silence.check(list(wanted.values()))
                await asyncio.sleep(delay)
                delay = min(delay * 2, LONGEST_DELAY_SECONDS)
        return Uploaded(sent, changed)

    def _patience(self, seconds: float | None) -> tuple["_Refusal", "_Silence"]:
        if seconds is None:
            return _Refusal(self._patience_seconds), _Silence(self._silence_seconds)
        return _Refusal(seconds), _Silence(seconds)

    async def _prepare_uploads(
        self, request: blobs_pb2.PrepareUploadsRequest, silence: "_Silence"
    ) -> Sequence[blobs_pb2.Upload]:
        def judge(failure: PlatformError) -> None:
            # The registry asks the store: there it is as silent as here.
            if failure.reason == "BLOB_STORE_UNAVAILABLE":
                silence.check([])
            else:
                silence.end()

        return (await call(self._registry.PrepareUploads, request, judge)).uploads

    async def _put_all(
        self,
        request: blobs_pb2.PrepareUploadsRequest,
        uploads: Sequence[blobs_pb2.Upload],
        wanted: Mapping[str, Path],
        refusal: "_Refusal",
        meters: Mapping[str, Meter],
        alone: set[str],
    ) -> list[bool]:
        """Whether each of the uploads has reached the store; small ones travel in packs.

        `alone` are those that do not: one that is not what was hashed must not hold up others.
        """
        sizes = {blob.sha256: blob.size_bytes for blob in request.blobs}
        files = [packs.Member(u.sha256, wanted[u.sha256], sizes[u.sha256]) for u in uploads]
        packed, single = packs.split([file for file in files if file.sha256 not in alone])
        single += [file for file in files if file.sha256 in alone]
        offers = {upload.sha256: upload for upload in uploads}
        done = await asyncio.gather(
            *(self._put_pack(request.parent, pack, refusal, meters, alone) for pack in packed),
            *(
                self._put(request.parent, offers[file.sha256], file.source, refusal, meters[file.sha256])
                for file in single
            ),
        )
        arrived = {file.sha256: ok for pack, ok in zip(packed, done, strict=False) for file in pack}
        arrived |= {file.sha256: ok for file, ok in zip(single, done[len(packed) :], strict=True)}
        return [arrived[upload.sha256] for upload in uploads]

    async def _put_pack(
        self,
        parent: str,
        pack: list[packs.Member],
        refusal: "_Refusal",
        meters: Mapping[str, Meter],
        alone: set[str],
    ) -> bool:
        def arrived(moved_bytes: int) -> None:
            for file in pack:
                meters[file.sha256].reach(file.size_bytes or 1)

        async def work() -> None:
            try:
                await packs.put(self._client, self._calls, parent, pack, Meter(arrived))
            except Changed:
                alone.update(file.sha256 for file in pack)
                raise

        return await self._tried(work(), refusal)

    async def _put(
        self, parent: str, upload: blobs_pb2.Upload, path: Path, refusal: "_Refusal", meter: Meter
    ) -> bool:
        try:
            size = path.stat().st_size
        except OSError as error:
            log.warning("%s cannot be read: %s", path, error)
            return False
        work = blob_store.put(self._client, self._calls, parent, path, size, upload, meter)
        return await self._tried(work, refusal)

    async def _tried(self, work: Coroutine[Any, Any, None], refusal: "_Refusal") -> bool:
        async with self._slots:
            try:
                await work
            except Refused as error:
                log.warning("The blob store refuses a file: %s", error)
                refusal.note(error.response)
                return False
            except (httpx.HTTPError, OSError, Changed, PlatformError) as error:
                # Of the registry's refusals: the parts did not make what was promised.
                log.warning("A file did not reach the blob store: %r; trying again", error)
                refusal.forget()
                return False
        refusal.forget()
        return True


class _Silence:
    """Since when the store has taken nothing."""

    def __init__(self, patience_seconds: float) -> None:
        self._patience_seconds = patience_seconds
        self._now: Callable[[], float] = asyncio.get_running_loop().time
        self._since = self._now()

    def end(self, moved_bytes: int = 0) -> None:
        """Something was taken, or it could not be tried."""
        self._since = self._now()

    def check(self, missing: Sequence[Path]) -> None:
        """Raises `StepFailed` when patience is over."""
        if self._now() - self._since < self._patience_seconds:
            return
        names = sorted(path.name for path in missing)
        more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
        what = f" Missing: {', '.join(names[:_NAMED])}{more}." if names else ""
        raise StepFailed(
            "OUTPUTS_NOT_COLLECTED",
            f"The blob store has taken no byte for {self._patience_seconds:g} s.{what}",
            "Check the S3 server (`stellwerk status`), then submit the run again. What was collected stays.",
        )


class _Refusal:
    """How long the store has been answering uploads with errors."""

    def __init__(self, patience_seconds: float) -> None:
        self._patience_seconds = patience_seconds
        self._since: float | None = None
        self._last: httpx.Response | None = None
        self._now: Callable[[], float] = asyncio.get_running_loop().time

    def note(self, response: httpx.Response) -> None:
        self._since = self._now() if self._since is None else self._since
        self._last = response

    def forget(self) -> None:
        self._since = self._last = None

    def check(self) -> None:
        """Raises `StepFailed` when patience is over."""
        if self._since is None or self._last is None or self._now() - self._since < self._patience_seconds:
            return
        status, body = self._last.status_code, self._last.text[:300]
        if status == httpx.codes.INSUFFICIENT_STORAGE or any(sign in body.lower() for sign in _FULL_SIGNS):
            raise StepFailed(
                "BLOB_STORE_FULL",
                f"The blob store has no room for the outputs (HTTP {status}).",
                "Free space on the blob store's disk or enlarge it, then submit the run again.",
            )
        if status >= httpx.codes.INTERNAL_SERVER_ERROR:
            raise StepFailed(
                "BLOB_STORE_UNAVAILABLE",
                f"The blob store keeps failing with HTTP {status}: {body}",
                "Check the S3 server (`stellwerk status`) and its free space, then submit the run again.",
            )
        raise StepFailed(
            "OUTPUT_COLLECTION_FAILED",
            f"The blob store refuses the outputs with HTTP {status}: {body}",
            "Check that no process still writes to the outputs, and the S3 server's log.",
        )
