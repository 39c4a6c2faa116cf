"""What this service asks of others: does it exist, and which version is it."""

from collections.abc import Sequence

import grpc

from stellwerk_platform.errors import FailedPrecondition, NotFound, from_rpc
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

_BLOBS_PER_CALL = 1_000


class Registry:
    """The registry as this service uses it; its errors reach the caller as they are."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._workspaces = workspaces_pb2_grpc.WorkspaceServiceStub(channel)
        self._environments = environments_pb2_grpc.EnvironmentServiceStub(channel)
        self._datasets = datasets_pb2_grpc.DatasetServiceStub(channel)
        self._models = models_pb2_grpc.ModelServiceStub(channel)
        self._blobs = blobs_pb2_grpc.BlobServiceStub(channel)
        self._known: set[str] = set()

    async def check_workspace(self, name: str) -> None:
        """Raises `NotFound` unless the workspace exists; workspaces that exist are remembered."""
        if name not in self._known:
            await self._workspaces.GetWorkspace(workspaces_pb2.GetWorkspaceRequest(name=name))
            self._known.add(name)

    async def environment(self, name: str) -> str:
        """The name with the number of the version; raises `NotFound`."""
        request = environments_pb2.GetEnvironmentVersionRequest(name=name)
        return (await self._environments.GetEnvironmentVersion(request)).name

    async def dataset(self, name: str) -> str:
        """The name with the number of the version; raises `NotFound`."""
        request = datasets_pb2.GetDatasetVersionRequest(name=name)
        return (await self._datasets.GetDatasetVersion(request)).name

    async def model(self, name: str) -> str:
        """The name with the number of the version; raises `NotFound`."""
        return (await self._models.GetModelVersion(models_pb2.GetModelVersionRequest(name=name))).name

    async def check_blobs(self, workspace: str, files: Sequence[File]) -> None:
        """Raises `FailedPrecondition` naming a file whose content has not been uploaded."""
        by_digest = {file.sha256: file for file in files}
        digests = list(by_digest)
        for start in range(0, len(digests), _BLOBS_PER_CALL):
            blobs = [
                blobs_pb2.Blob(sha256=digest, size_bytes=by_digest[digest].size_bytes)
                for digest in digests[start : start + _BLOBS_PER_CALL]
            ]
            answer = await self._blobs.PrepareUploads(
                blobs_pb2.PrepareUploadsRequest(parent=workspace, blobs=blobs)
            )
            if answer.uploads:
                path = by_digest[answer.uploads[0].sha256].path
                raise FailedPrecondition(
                    "BLOB_MISSING",
                    f"The content of {path!r} has not been uploaded.",
                    "Upload what PrepareUploads names, then try again.",
                    {"path": path},
                )


class Compute:
    """The compute service as this service uses it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._computes = computes_pb2_grpc.ComputeServiceStub(channel)

    async def check(self, name: str) -> None:
        """Raises `NotFound` unless the compute exists."""
        try:
            await self._computes.GetCompute(computes_pb2.GetComputeRequest(name=name))
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.NOT_FOUND:
                raise from_rpc(error) from error
            raise NotFound(
                "COMPUTE_NOT_FOUND",
                f"There is no compute {name}.",
                "See `stellwerk compute list`; every workspace has the compute 'local'.",
            ) from error
