"""ArtifactService: parse, check, store, reply."""

from typing import Any

from stellwerk_platform import names
from stellwerk_platform.content import check_files
from stellwerk_platform.errors import InvalidArgument
from stellwerk_protos.runs.v1 import artifacts_pb2 as pb
from stellwerk_protos.runs.v1 import artifacts_pb2_grpc
from stellwerk_runs.artifacts.store import ArtifactStore
from stellwerk_runs.runs.store import RunStore
from stellwerk_runs.upstream import Registry

_RUN = "workspaces/*/runs/*"
_FILES_PER_CALL = 1_000


class ArtifactService(artifacts_pb2_grpc.ArtifactServiceServicer):
    """The servicer."""

    def __init__(self, store: ArtifactStore, runs: RunStore, registry: Registry) -> None:
        self._store = store
        self._runs = runs
        self._registry = registry

    async def CreateArtifacts(
        self, request: pb.CreateArtifactsRequest, context: Any
    ) -> pb.CreateArtifactsResponse:
        (workspace, _) = names.parse(_RUN, request.parent)
        if len(request.files) > _FILES_PER_CALL:
            raise InvalidArgument(
                "TOO_MANY_FILES", f"{len(request.files):,} files in one call.", f"Send {_FILES_PER_CALL:,}."
            )
        files = check_files(request.files)
        await self._runs.check(request.parent)
        await self._registry.check_blobs(f"workspaces/{workspace}", files)
        await self._store.record(request.parent, files)
        return pb.CreateArtifactsResponse()

    async def ListArtifacts(self, request: pb.ListArtifactsRequest, context: Any) -> pb.ListArtifactsResponse:
        names.parse(_RUN, request.parent)
        await self._runs.check(request.parent)
        path = request.path.rstrip("/")
        files, token = await self._store.page(request.parent, path, request.page_size, request.page_token)
        return pb.ListArtifactsResponse(files=files, next_page_token=token)
