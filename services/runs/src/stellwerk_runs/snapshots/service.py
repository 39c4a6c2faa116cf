"""SnapshotService: parse, check, store, reply."""

from typing import Any

from stellwerk_platform import names
from stellwerk_platform.auth import current_caller
from stellwerk_platform.errors import AlreadyExists
from stellwerk_platform.journal import Fact
from stellwerk_protos.runs.v1 import snapshots_pb2 as pb
from stellwerk_protos.runs.v1 import snapshots_pb2_grpc
from stellwerk_runs.snapshots.domain import new_snapshot
from stellwerk_runs.snapshots.store import SnapshotStore
from stellwerk_runs.upstream import Registry


class SnapshotService(snapshots_pb2_grpc.SnapshotServiceServicer):
    """The servicer."""

    def __init__(self, store: SnapshotStore, registry: Registry) -> None:
        self._store = store
        self._registry = registry

    async def CreateSnapshot(self, request: pb.CreateSnapshotRequest, context: Any) -> pb.Snapshot:
        names.parse("workspaces/*", request.parent)
        snapshot = new_snapshot(request.parent, request.files, current_caller().subject)
        await self._registry.check_workspace(request.parent)
        if (existing := await self._store.find(snapshot.name)) is not None:
            return existing
        await self._registry.check_blobs(request.parent, snapshot.files)
        try:
            return await self._store.create(snapshot, Fact("created", "REQUESTED"))
        except AlreadyExists:
            return await self._store.get(snapshot.name)

    async def GetSnapshot(self, request: pb.GetSnapshotRequest, context: Any) -> pb.Snapshot:
        names.parse("workspaces/*/snapshots/*", request.name)
        return await self._store.get(request.name)
