"""ModelService."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stellwerk_platform import names
from stellwerk_platform.auth import current_caller
from stellwerk_platform.checks import check_description, check_tags
from stellwerk_platform.content import check_files, check_path, digest_of
from stellwerk_platform.errors import FailedPrecondition, NotFound
from stellwerk_protos.common.v1.common_pb2 import File
from stellwerk_protos.inference.v1 import endpoints_pb2
from stellwerk_protos.registry.v1 import models_pb2 as pb
from stellwerk_protos.registry.v1 import models_pb2_grpc
from stellwerk_protos.runs.v1 import artifacts_pb2
from stellwerk_registry.blobs.service import BlobService
from stellwerk_registry.versions.store import VersionStore
from stellwerk_registry.workspaces.store import WorkspaceStore

if TYPE_CHECKING:
    # Only the type stubs know the asynchronous face of a stub.
    from stellwerk_protos.inference.v1.endpoints_pb2_grpc import EndpointServiceAsyncStub
    from stellwerk_protos.runs.v1.artifacts_pb2_grpc import ArtifactServiceAsyncStub

_NAMED = 10
_PARENT = "workspaces/*/models/*"


def relative_to(path: str, files: list[File]) -> list[File]:
    """The files with paths relative to the registered file or folder.

    A file keeps its own name: `outputs/model.joblib` becomes `model.joblib`.
    """
    result = []
    for file in files:
        inner = file.path.removeprefix(f"{path}/") if file.path != path else path.rsplit("/", 1)[-1]
        copy = File()
        copy.CopyFrom(file)
        copy.path = inner
        result.append(copy)
    return result


def in_use(version: str, deployments: Sequence[str]) -> FailedPrecondition:
    """The error for a version that deployments serve or can be rolled back to."""
    shown = ", ".join("/".join(name.split("/")[3::2]) for name in deployments[:_NAMED])
    more = f" and {len(deployments) - _NAMED} more" if len(deployments) > _NAMED else ""
    model, number = version.split("/")[3::2]
    return FailedPrecondition(
        "MODEL_IN_USE",
        f"{model}:{number} is used by the deployments {shown}{more}, or kept for rolling them back.",
        "Update or delete them; `stellwerk deployment update NAME --endpoint ENDPOINT --keep 1` forgets "
        "what could be rolled back to.",
    )


class ModelService(models_pb2_grpc.ModelServiceServicer):
    """The servicer."""

    def __init__(
        self,
        store: VersionStore[pb.ModelVersion],
        workspaces: WorkspaceStore,
        blobs: BlobService,
        artifacts: "ArtifactServiceAsyncStub",
        endpoints: "EndpointServiceAsyncStub",
    ) -> None:
        self._store = store
        self._workspaces = workspaces
        self._blobs = blobs
        self._artifacts = artifacts
        self._endpoints = endpoints

    async def CreateModelVersion(
        self, request: pb.CreateModelVersionRequest, context: Any
    ) -> pb.ModelVersion:
        workspace, _ = names.parse(_PARENT, request.parent)
        await self._workspaces.check(workspace)
        check_description(request.description)
        check_tags(request.tags)
        if request.run:
            files = await self._from_run(workspace, request.run, request.path)
        else:
            files = check_files(request.files)
            await self._blobs.check_present(workspace, files)
        creator = current_caller().subject

        def build(number: int) -> pb.ModelVersion:
            return pb.ModelVersion(
                name=f"{request.parent}/versions/{number}",
                creator=creator,
                version=number,
                description=request.description,
                tags=request.tags,
                run=request.run,
                path=request.path,
                files=files,
                digest=f"sha256:{digest_of(files)}",
                size_bytes=sum(file.size_bytes for file in files),
            )

        return await self._store.create_next(request.parent, build, request.request_id)

    async def GetModelVersion(self, request: pb.GetModelVersionRequest, context: Any) -> pb.ModelVersion:
        names.parse(f"{_PARENT}/versions/*", request.name)
        return await self._store.resolve(request.name)

    async def ListModelVersions(
        self, request: pb.ListModelVersionsRequest, context: Any
    ) -> pb.ListModelVersionsResponse:
        workspace, _ = names.parse(_PARENT, request.parent, wildcard=True)
        await self._workspaces.check(workspace)
        items, token = await self._store.page_below(request.parent, request.page_size, request.page_token)
        return pb.ListModelVersionsResponse(model_versions=items, next_page_token=token)

    async def DeleteModelVersion(
        self, request: pb.DeleteModelVersionRequest, context: Any
    ) -> pb.ModelVersion:
        names.parse(f"{_PARENT}/versions/*", request.name)
        await self._store.get(request.name)
        # A rollout that begins after the answer finds no version, and fails without touching what serves.
        uses = await self._endpoints.ListModelUses(
            endpoints_pb2.ListModelUsesRequest(model_version=request.name)
        )
        if uses.deployments:
            raise in_use(request.name, uses.deployments)
        return await self._store.delete(request.name)

    async def _from_run(self, workspace: str, run: str, path: str) -> list[File]:
        run_workspace, run_id = names.parse("workspaces/*/runs/*", run)
        if run_workspace != workspace:
            raise NotFound(
                "RUN_NOT_FOUND", f"The run is not in workspace {workspace!r}.", "Name a run of it."
            )
        path = check_path(path.rstrip("/"))
        files: list[File] = []
        request = artifacts_pb2.ListArtifactsRequest(parent=run, path=path, page_size=1_000)
        while True:
            answer = await self._artifacts.ListArtifacts(request)
            files += answer.files
            if not answer.next_page_token:
                break
            request.page_token = answer.next_page_token
        if not files:
            raise NotFound(
                "ARTIFACT_NOT_FOUND",
                f"Run {run_id} has no {path!r} among its outputs.",
                f"See what it has: `stellwerk run show {run_id}`. Scripts write to ./outputs.",
            )
        return check_files(relative_to(path, files))
