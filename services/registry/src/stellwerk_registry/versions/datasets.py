"""DatasetService."""

from typing import Any

from stellwerk_platform import names
from stellwerk_platform.auth import current_caller
from stellwerk_platform.checks import check_description, check_tags
from stellwerk_platform.content import check_files, digest_of
from stellwerk_protos.registry.v1 import datasets_pb2 as pb
from stellwerk_protos.registry.v1 import datasets_pb2_grpc
from stellwerk_registry.blobs.service import BlobService
from stellwerk_registry.versions.store import VersionStore
from stellwerk_registry.workspaces.store import WorkspaceStore

_PARENT = "workspaces/*/datasets/*"


class DatasetService(datasets_pb2_grpc.DatasetServiceServicer):
    """The servicer."""

    def __init__(
        self, store: VersionStore[pb.DatasetVersion], workspaces: WorkspaceStore, blobs: BlobService
    ) -> None:
        self._store = store
        self._workspaces = workspaces
        self._blobs = blobs

    async def CreateDatasetVersion(
        self, request: pb.CreateDatasetVersionRequest, context: Any
    ) -> pb.DatasetVersion:
        workspace, _ = names.parse(_PARENT, request.parent)
        await self._workspaces.check(workspace)
        check_description(request.description)
        check_tags(request.tags)
        files = check_files(request.files)
        await self._blobs.check_present(workspace, files)
        creator = current_caller().subject

        def build(number: int) -> pb.DatasetVersion:
            return pb.DatasetVersion(
                name=f"{request.parent}/versions/{number}",
                creator=creator,
                version=number,
                description=request.description,
                tags=request.tags,
                source=request.source,
                files=files,
                digest=f"sha256:{digest_of(files)}",
                size_bytes=sum(file.size_bytes for file in files),
            )

        return await self._store.create_next(request.parent, build, request.request_id)

    async def GetDatasetVersion(
        self, request: pb.GetDatasetVersionRequest, context: Any
    ) -> pb.DatasetVersion:
        names.parse(f"{_PARENT}/versions/*", request.name)
        return await self._store.resolve(request.name)

    async def ListDatasetVersions(
        self, request: pb.ListDatasetVersionsRequest, context: Any
    ) -> pb.ListDatasetVersionsResponse:
        workspace, _ = names.parse(_PARENT, request.parent, wildcard=True)
        await self._workspaces.check(workspace)
        items, token = await self._store.page_below(request.parent, request.page_size, request.page_token)
        return pb.ListDatasetVersionsResponse(dataset_versions=items, next_page_token=token)
