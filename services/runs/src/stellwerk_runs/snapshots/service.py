"""SnapshotService: parse, check, store, reply."""

import asyncio
from collections.abc import Sequence
from typing import Any

from stellwerk_platform import names
from stellwerk_platform.auth import current_caller
from stellwerk_platform.errors import AlreadyExists
from stellwerk_platform.journal import Fact
from stellwerk_protos.common.v1.common_pb2 import File
from stellwerk_protos.runs.v1 import snapshots_pb2 as pb
from stellwerk_protos.runs.v1 import snapshots_pb2_grpc
from stellwerk_runs.snapshots import domain
from stellwerk_runs.snapshots.store import SnapshotStore
from stellwerk_runs.upstream import Registry


class SnapshotService(snapshots_pb2_grpc.SnapshotServiceServicer):
    """The servicer."""

    def __init__(self, store: SnapshotStore, registry: Registry) -> None:
        self._store = store
        self._registry = registry
        # A manifest of 256 MiB takes its multiple in memory while it is checked.
        self._manifests = asyncio.Semaphore(1)

    async def CreateSnapshot(self, request: pb.CreateSnapshotRequest, context: Any) -> pb.Snapshot:
        names.parse("workspaces/*", request.parent)
        domain.check_request(request)
        creator = current_caller().subject
        if request.manifest:
            await self._registry.check_workspace(request.parent)
            async with self._manifests:
                return await self._create_large(request.parent, request.manifest, creator)
        snapshot = domain.new_snapshot(request.parent, request.files, creator)
        await self._registry.check_workspace(request.parent)
        return await self._create(snapshot, snapshot.files)

    async def _create_large(self, parent: str, manifest: str, creator: str) -> pb.Snapshot:
        body = await self._registry.read_blob(parent, manifest, domain.MANIFEST_BYTES)
        snapshot, files = await asyncio.to_thread(domain.from_manifest, parent, manifest, body, creator)
        return await self._create(snapshot, files)

    async def _create(self, snapshot: pb.Snapshot, files: Sequence[File]) -> pb.Snapshot:
        # Also for a snapshot that is known: what it names must not be removed at this moment.
        await self._registry.check_blobs(names.parent_of(snapshot.name), files)
        try:
            return await self._store.create(snapshot, Fact("created", "REQUESTED"))
        except AlreadyExists:
            await self._store.check(snapshot.name)
            return await self._store.get(snapshot.name)

    async def GetSnapshot(self, request: pb.GetSnapshotRequest, context: Any) -> pb.Snapshot:
        names.parse("workspaces/*/snapshots/*", request.name)
        return await self._store.get(request.name)
