"""BlobService: which blobs are missing, and where to put and get them."""

import asyncio
from collections.abc import Iterable
from typing import Any

from stellwerk_platform import names
from stellwerk_platform.blobs import BlobStore
from stellwerk_platform.content import check_sha256
from stellwerk_platform.errors import FailedPrecondition, InvalidArgument, NotFound
from stellwerk_protos.common.v1.common_pb2 import File
from stellwerk_protos.registry.v1 import blobs_pb2 as pb
from stellwerk_protos.registry.v1 import blobs_pb2_grpc
from stellwerk_registry.workspaces.store import WorkspaceStore

_BATCH = 1_000
_CONCURRENT_CHECKS = 32


class BlobService(blobs_pb2_grpc.BlobServiceServicer):
    """The servicer, and the check that a file list's blobs are there."""

    def __init__(self, workspaces: WorkspaceStore, store: BlobStore) -> None:
        self._workspaces = workspaces
        self._store = store
        self._checks = asyncio.Semaphore(_CONCURRENT_CHECKS)

    async def PrepareUploads(
        self, request: pb.PrepareUploadsRequest, context: Any
    ) -> pb.PrepareUploadsResponse:
        workspace = await self._workspace(request.parent, len(request.blobs))
        digests = [check_sha256(blob.sha256) for blob in request.blobs]
        missing = await self._missing(workspace, digests)
        uploads = []
        for digest in missing:
            url, headers = await self._store.upload_url(workspace, digest)
            uploads.append(pb.Upload(sha256=digest, url=url, headers=headers))
        return pb.PrepareUploadsResponse(uploads=uploads)

    async def PrepareDownloads(
        self, request: pb.PrepareDownloadsRequest, context: Any
    ) -> pb.PrepareDownloadsResponse:
        workspace = await self._workspace(request.parent, len(request.sha256))
        digests = [check_sha256(digest) for digest in request.sha256]
        if missing := await self._missing(workspace, digests):
            raise NotFound("BLOB_NOT_FOUND", f"There is no blob {missing[0]}.", "Upload it again.")
        downloads = [
            pb.Download(sha256=digest, url=await self._store.download_url(workspace, digest))
            for digest in digests
        ]
        return pb.PrepareDownloadsResponse(downloads=downloads)

    async def check_present(self, workspace: str, files: Iterable[File]) -> None:
        """Raises `FailedPrecondition` naming the first file whose blob has not been uploaded."""
        by_digest = {file.sha256: file.path for file in files}
        if missing := await self._missing(workspace, list(by_digest)):
            raise FailedPrecondition(
                "BLOB_MISSING",
                f"The content of {by_digest[missing[0]]!r} has not been uploaded.",
                "Upload it first.",
            )

    async def _workspace(self, parent: str, count: int) -> str:
        (workspace,) = names.parse("workspaces/*", parent)
        if count > _BATCH:
            raise InvalidArgument(
                "TOO_MANY_BLOBS", f"{count:,} blobs in one call.", f"Ask for up to {_BATCH:,}."
            )
        await self._workspaces.check(workspace)
        return workspace

    async def _missing(self, workspace: str, digests: list[str]) -> list[str]:
        async def check(digest: str) -> bool:
            async with self._checks:
                return await self._store.size(workspace, digest) is None

        unique = list(dict.fromkeys(digests))
        missing = await asyncio.gather(*(check(digest) for digest in unique))
        return [digest for digest, gone in zip(unique, missing, strict=True) if gone]
