"""What this service asks of others before it makes a deployment; their errors go on to the caller."""

from collections.abc import Sequence

import grpc

from stellwerk_protos.common.v1.common_pb2 import File
from stellwerk_protos.compute.v1 import computes_pb2, computes_pb2_grpc
from stellwerk_protos.registry.v1 import (
    environments_pb2,
    environments_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    workspaces_pb2,
    workspaces_pb2_grpc,
)
from stellwerk_protos.runs.v1 import snapshots_pb2, snapshots_pb2_grpc


class Upstream:
    """Registry, runs and compute as this service uses them. All raise `NotFound`."""

    def __init__(self, registry: grpc.aio.Channel, runs: grpc.aio.Channel, compute: grpc.aio.Channel) -> None:
        self._workspaces = workspaces_pb2_grpc.WorkspaceServiceStub(registry)
        self._environments = environments_pb2_grpc.EnvironmentServiceStub(registry)
        self._models = models_pb2_grpc.ModelServiceStub(registry)
        self._snapshots = snapshots_pb2_grpc.SnapshotServiceStub(runs)
        self._computes = computes_pb2_grpc.ComputeServiceStub(compute)
        self._known: set[str] = set()

    async def check_workspace(self, name: str) -> None:
        """Workspaces that exist are remembered."""
        if name not in self._known:
            await self._workspaces.GetWorkspace(workspaces_pb2.GetWorkspaceRequest(name=name))
            self._known.add(name)

    async def check_compute(self, name: str) -> None:
        """The compute exists."""
        await self._computes.GetCompute(computes_pb2.GetComputeRequest(name=name))

    async def model(self, name: str) -> str:
        """The name with the number of the version."""
        return (await self._models.GetModelVersion(models_pb2.GetModelVersionRequest(name=name))).name

    async def environment(self, name: str) -> str:
        """The name with the number of the version."""
        request = environments_pb2.GetEnvironmentVersionRequest(name=name)
        return (await self._environments.GetEnvironmentVersion(request)).name

    async def files(self, snapshot: str) -> Sequence[File]:
        """What the snapshot holds."""
        return (await self._snapshots.GetSnapshot(snapshots_pb2.GetSnapshotRequest(name=snapshot))).files
