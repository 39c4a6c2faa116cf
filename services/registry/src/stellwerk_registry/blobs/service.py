"""BlobService: which blobs are missing, and where to put and get them."""

from collections.abc import Iterable, Mapping
from typing import Any

from stellwerk_platform import names
from stellwerk_platform.content import check_sha256
from stellwerk_platform.errors import FailedPrecondition, InvalidArgument, NotFound
from stellwerk_platform.quotas import check_storage
from stellwerk_protos.common.v1.common_pb2 import File
from stellwerk_protos.registry.v1 import blobs_pb2 as pb
from stellwerk_protos.registry.v1 import blobs_pb2_grpc
from stellwerk_registry.blobs.store import BlobIndex
from stellwerk_registry.datastores.places import Place, Places
from stellwerk_registry.packs.store import Packs
from stellwerk_registry.quotas.store import QuotaStore
from stellwerk_registry.uploads.store import Uploads
from stellwerk_registry.workspaces.store import WorkspaceStore

_BATCH = 1_000


class BlobService(blobs_pb2_grpc.BlobServiceServicer):
    """The servicer, and the check that a file list's blobs are there."""

    def __init__(
        self,
        workspaces: WorkspaceStore,
        places: Places,
        index: BlobIndex,
        quotas: QuotaStore,
        uploads: Uploads,
        packs: Packs,
    ) -> None:
        self._workspaces = workspaces
        self._places = places
        self._index = index
        self._quotas = quotas
        self._uploads = uploads
        self._packs = packs

    async def PrepareUploads(
        self, request: pb.PrepareUploadsRequest, context: Any
    ) -> pb.PrepareUploadsResponse:
        workspace = await self._workspace(request.parent, len(request.blobs))
        sizes = {check_sha256(blob.sha256): max(0, blob.size_bytes) for blob in request.blobs}
        missing = await self._index.missing(workspace, sizes)
        wanted = {digest: sizes[digest] for digest in missing}
        await self._check_room(workspace, wanted)
        if not missing:
            return pb.PrepareUploadsResponse()
        await self._uploads.finish_claimed(workspace, wanted)
        datastore, place = await self._places.default(workspace)
        await self._index.offer(workspace, wanted, datastore)
        offers = [await self._offer(workspace, place, digest, wanted[digest]) for digest in missing]
        return pb.PrepareUploadsResponse(uploads=filter(None, offers))

    async def _offer(self, workspace: str, place: Place, digest: str, size_bytes: int) -> pb.Upload | None:
        if self._uploads.part_size(size_bytes):
            begun = await self._uploads.begin(workspace, digest, size_bytes)
            if begun is None:
                return None
            upload, present = begun
            return pb.Upload(sha256=digest, part_size_bytes=upload.part_size_bytes, present_parts=present)
        url, headers = place.upload_url(digest, size_bytes)
        return pb.Upload(sha256=digest, url=url, headers=headers)

    async def PreparePart(self, request: pb.PreparePartRequest, context: Any) -> pb.PreparePartResponse:
        workspace = await self._workspace(request.parent, 1)
        url, headers = await self._uploads.part_url(
            workspace, check_sha256(request.sha256), request.number, check_sha256(request.part_sha256)
        )
        return pb.PreparePartResponse(url=url, headers=headers)

    async def CompleteUpload(
        self, request: pb.CompleteUploadRequest, context: Any
    ) -> pb.CompleteUploadResponse:
        workspace = await self._workspace(request.parent, 1)
        check = await self._uploads.complete(workspace, check_sha256(request.sha256))
        return pb.CompleteUploadResponse(done=check.done, checked_size_bytes=check.checked_bytes)

    async def _check_room(self, workspace: str, wanted: Mapping[str, int]) -> None:
        """Raises `ResourceExhausted` when so many more bytes, by digest, have no room.

        What is there counts with the size that the store says, whatever the client said before.
        """
        limits = (await self._quotas.of(f"workspaces/{workspace}")).limits
        if limits.storage_bytes:
            used = await self._index.used_bytes(workspace, without=list(wanted))
            check_storage(limits, used, sum(wanted.values()))

    async def PrepareDownloads(
        self, request: pb.PrepareDownloadsRequest, context: Any
    ) -> pb.PrepareDownloadsResponse:
        workspace = await self._workspace(request.parent, len(request.sha256))
        digests = [check_sha256(digest) for digest in request.sha256]
        if missing := await self._index.missing(workspace, digests):
            raise NotFound("BLOB_NOT_FOUND", f"There is no blob {missing[0]}.", "Upload it again.")
        downloads = await self._packs.downloads(workspace, digests, packs=request.packs)
        return pb.PrepareDownloadsResponse(downloads=downloads)

    async def CreatePack(self, request: pb.CreatePackRequest, context: Any) -> pb.CreatePackResponse:
        workspace = await self._workspace(request.parent, len(request.blobs))
        await self._packs.create(workspace, check_sha256(request.sha256), request.blobs)
        return pb.CreatePackResponse()

    async def ReleaseBlobs(self, request: pb.ReleaseBlobsRequest, context: Any) -> pb.ReleaseBlobsResponse:
        workspace = await self._workspace(request.parent, len(request.sha256))
        digests = [check_sha256(digest) for digest in request.sha256]
        sizes, later = await self._index.removals.release(
            workspace, digests, validate_only=request.validate_only
        )
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
        await self._check_room(workspace, {})

    async def _workspace(self, parent: str, count: int) -> str:
        (workspace,) = names.parse("workspaces/*", parent)
        if count > _BATCH:
            raise InvalidArgument(
                "TOO_MANY_BLOBS", f"{count:,} blobs in one call.", f"Ask for up to {_BATCH:,}."
            )
        await self._workspaces.check(workspace)
        return workspace
