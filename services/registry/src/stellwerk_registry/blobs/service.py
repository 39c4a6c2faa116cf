"""BlobService: which blobs are missing, and where to put and get them."""

from collections.abc import Iterable
from typing import Any

from stellwerk_platform import names
from stellwerk_platform.blobs import BlobStore
from stellwerk_platform.content import check_sha256
from stellwerk_platform.errors import FailedPrecondition, InvalidArgument, NotFound
from stellwerk_protos.common.v1.common_pb2 import File
from stellwerk_protos.registry.v1 import blobs_pb2 as pb
from stellwerk_protos.registry.v1 import blobs_pb2_grpc
from stellwerk_registry.blobs.store import BlobIndex
from stellwerk_registry.workspaces.store import WorkspaceStore

_BATCH = 1_000


class BlobService(blobs_pb2_grpc.BlobServiceServicer):
    """The servicer, and the check that a file list's blobs are there."""

    def __init__(self, workspaces: WorkspaceStore, store: BlobStore, index: BlobIndex) -> None:
        self._workspaces = workspaces
        self._store = store
        self._index = index

    async def PrepareUploads(
        self, request: pb.PrepareUploadsRequest, context: Any
    ) -> pb.PrepareUploadsResponse:
        workspace = await self._workspace(request.parent, len(request.blobs))
        digests = [check_sha256(blob.sha256) for blob in request.blobs]
        missing = await self._index.missing(workspace, digests, offer=True)
        uploads = []
        for digest in missing:
            url, headers = self._store.upload_url(workspace, digest)
            uploads.append(pb.Upload(sha256=digest, url=url, headers=headers))
        return pb.PrepareUploadsResponse(uploads=uploads)

    async def PrepareDownloads(
        self, request: pb.PrepareDownloadsRequest, context: Any
    ) -> pb.PrepareDownloadsResponse:
        workspace = await self._workspace(request.parent, len(request.sha256))
        digests = [check_sha256(digest) for digest in request.sha256]
        if missing := await self._index.missing(workspace, digests):
            raise NotFound("BLOB_NOT_FOUND", f"There is no blob {missing[0]}.", "Upload it again.")
        downloads = [
            pb.Download(sha256=digest, url=self._store.download_url(workspace, digest)) for digest in digests
        ]
        return pb.PrepareDownloadsResponse(downloads=downloads)

    async def ReleaseBlobs(self, request: pb.ReleaseBlobsRequest, context: Any) -> pb.ReleaseBlobsResponse:
        workspace = await self._workspace(request.parent, len(request.sha256))
        digests = [check_sha256(digest) for digest in request.sha256]
        sizes, later = await self._index.release(workspace, digests, validate_only=request.validate_only)
        return pb.ReleaseBlobsResponse(blob_count=len(sizes), size_bytes=sum(sizes.values()), later=later)

    async def check_present(self, workspace: str, files: Iterable[File]) -> None:
        """Raises `FailedPrecondition` naming the first file whose blob has not been uploaded."""
        by_digest = {file.sha256: file.path for file in files}
        if missing := await self._index.missing(workspace, list(by_digest)):
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
