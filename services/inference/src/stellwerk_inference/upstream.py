"""What this service asks of others before it makes a deployment; their errors go on to the caller."""

from collections.abc import Mapping, Sequence

import grpc

from stellwerk_platform.errors import FailedPrecondition
from stellwerk_platform.mongo import Database
from stellwerk_platform.quotas import Quotas
from stellwerk_platform.workspaces import Workspaces
from stellwerk_protos.common.v1.common_pb2 import File
from stellwerk_protos.compute.v1 import computes_pb2, computes_pb2_grpc
from stellwerk_protos.registry.v1 import (
    blobs_pb2,
    blobs_pb2_grpc,
    datasets_pb2,
    datasets_pb2_grpc,
    environments_pb2,
    environments_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    workspaces_pb2,
    workspaces_pb2_grpc,
)
from stellwerk_protos.runs.v1 import retention_pb2, retention_pb2_grpc, snapshots_pb2, snapshots_pb2_grpc

# In one call.
_BLOBS = 1_000


class Upstream:
    """Registry, runs and compute as this service uses them. All raise `NotFound`."""

    def __init__(
        self,
        registry: grpc.aio.Channel,
        runs: grpc.aio.Channel,
        compute: grpc.aio.Channel,
        database: Database,
    ) -> None:
        self._workspaces = workspaces_pb2_grpc.WorkspaceServiceStub(registry)
        self._datasets = datasets_pb2_grpc.DatasetServiceStub(registry)
        self._environments = environments_pb2_grpc.EnvironmentServiceStub(registry)
        self._blobs = blobs_pb2_grpc.BlobServiceStub(registry)
        self._models = models_pb2_grpc.ModelServiceStub(registry)
        self._snapshots = snapshots_pb2_grpc.SnapshotServiceStub(runs)
        self._retention = retention_pb2_grpc.RetentionServiceStub(runs)
        self._computes = computes_pb2_grpc.ComputeServiceStub(compute)
        self.workspaces = Workspaces(database, self._workspace)
        self.quotas = Quotas(registry)
        self.workspaces.on_change(self.quotas.forget)

    async def check_workspace(self, name: str) -> None:
        """Also raises `FailedPrecondition` while the workspace is being deleted."""
        await self.workspaces.check(name)

    async def check_start(self, workspace: str) -> None:
        """Raises `ResourceExhausted` when nothing may start in the workspace any more."""
        await self.workspaces.check(workspace)
        await self.quotas.check_start(workspace)

    async def _workspace(self, name: str) -> workspaces_pb2.Workspace:
        return await self._workspaces.GetWorkspace(workspaces_pb2.GetWorkspaceRequest(name=name))

    async def check_compute(self, name: str) -> None:
        """The compute exists."""
        await self._computes.GetCompute(computes_pb2.GetComputeRequest(name=name))

    async def model(self, name: str) -> models_pb2.ModelVersion:
        """The version, by its number."""
        return await self._models.GetModelVersion(models_pb2.GetModelVersionRequest(name=name))

    async def dataset(self, name: str) -> datasets_pb2.DatasetVersion:
        """The version, "latest" too."""
        return await self._datasets.GetDatasetVersion(datasets_pb2.GetDatasetVersionRequest(name=name))

    async def register(self, request: datasets_pb2.CreateDatasetVersionRequest) -> str:
        """The name of a new version of a dataset; the same one for a repeated request."""
        return (await self._datasets.CreateDatasetVersion(request)).name

    async def environment(self, name: str) -> str:
        """The name with the number of the version."""
        request = environments_pb2.GetEnvironmentVersionRequest(name=name)
        return (await self._environments.GetEnvironmentVersion(request)).name

    async def download_urls(self, workspace: str, digests: Sequence[str]) -> Mapping[str, str]:
        """A URL by the digest of each blob, good for 15 minutes; also raises `Unavailable`."""
        urls: dict[str, str] = {}
        for start in range(0, len(digests), _BLOBS):
            batch = digests[start : start + _BLOBS]
            request = blobs_pb2.PrepareDownloadsRequest(parent=workspace, sha256=batch)
            urls |= {
                found.sha256: found.url for found in (await self._blobs.PrepareDownloads(request)).downloads
            }
        return urls

    async def files(self, snapshot: str) -> Sequence[File]:
        """What the snapshot holds."""
        return (await self._snapshots.GetSnapshot(snapshots_pb2.GetSnapshotRequest(name=snapshot))).files

    async def check_blobs(self, workspace: str, files: Sequence[File]) -> None:
        """Raises `FailedPrecondition` naming one of up to 1,000 files that was not uploaded."""
        blobs = [blobs_pb2.Blob(sha256=file.sha256, size_bytes=file.size_bytes) for file in files]
        # Asked as for an upload, so that they stay while they are being recorded.
        request = blobs_pb2.PrepareUploadsRequest(parent=workspace, blobs=blobs)
        missing = {upload.sha256 for upload in (await self._blobs.PrepareUploads(request)).uploads}
        for file in files:
            if file.sha256 in missing:
                raise FailedPrecondition(
                    "BLOB_MISSING", f"The content of {file.path} was not uploaded.", "Upload it first."
                )

    async def release_blobs(self, workspace: str, digests: Sequence[str]) -> Sequence[str]:
        """Gives up to 1,000 blobs up, but for those that runs use; those to ask for again later."""
        asked = retention_pb2.ListReferencedBlobsRequest(parent=workspace, sha256=digests)
        kept = set((await self._retention.ListReferencedBlobs(asked)).sha256)
        free = [digest for digest in digests if digest not in kept]
        released = blobs_pb2.ReleaseBlobsRequest(parent=workspace, sha256=free)
        return (await self._blobs.ReleaseBlobs(released)).later if free else ()
