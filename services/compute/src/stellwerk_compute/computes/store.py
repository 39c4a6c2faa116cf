"""Computes in MongoDB."""

import grpc

from stellwerk_compute.computes import domain
from stellwerk_platform import names
from stellwerk_platform.errors import AlreadyExists, FailedPrecondition, NotFound, from_rpc
from stellwerk_platform.journal import Fact
from stellwerk_platform.mongo import Collection, Database
from stellwerk_platform.workspaces import Workspaces
from stellwerk_protos.compute.v1 import computes_pb2
from stellwerk_protos.registry.v1 import workspaces_pb2, workspaces_pb2_grpc


class ComputeStore:
    """The computes of all workspaces."""

    def __init__(
        self, database: Database, workspaces: "workspaces_pb2_grpc.WorkspaceServiceAsyncStub"
    ) -> None:
        self._collection = Collection(
            database,
            "computes",
            computes_pb2.Compute,
            extra=lambda compute: {"workspace": names.workspace_of(compute.name)},
        )
        self._stub = workspaces
        self.workspaces = Workspaces(database, self._workspace)

    async def open(self) -> None:
        """Creates the collection."""
        await self._collection.open()

    async def get(self, name: str) -> computes_pb2.Compute:
        """A compute; the local one is made when the workspace has none yet. Raises `NotFound`."""
        workspace, compute_id = names.parse(domain.PATTERN, name)
        compute = await self._collection.find(name)
        if compute is None and compute_id == domain.LOCAL:
            compute = await self._ensure_known(workspace)
        if compute is None:
            raise domain.missing(name)
        return compute

    async def page(self, workspace: str, size: int, token: str) -> tuple[list[computes_pb2.Compute], str]:
        """A page by name; raises `NotFound` for an unknown workspace."""
        await self.get(domain.local_of(workspace).name)
        return await self._collection.page({"workspace": workspace}, size, token)

    async def ensure_local(self, workspace: str, cause: str = "") -> computes_pb2.Compute:
        """Makes the local compute of a workspace that is known to exist; again, nothing changes."""
        compute = domain.local_of(workspace)
        existing = await self._collection.find(compute.name)
        if existing is not None:
            return existing
        fact = Fact("created", "WORKSPACE_CREATED", "Every workspace has a local compute.", cause=cause)
        try:
            return await self._collection.create(compute, fact)
        except AlreadyExists:
            return await self._collection.get(compute.name)

    async def is_open(self, name: str) -> bool:
        """Whether the workspace in a name takes new things: an event may be older than its deletion."""
        try:
            await self.workspaces.check(f"workspaces/{names.workspace_of(name)}")
        except (NotFound, FailedPrecondition):
            return False
        return True

    async def _ensure_known(self, workspace: str) -> computes_pb2.Compute:
        await self.workspaces.check(f"workspaces/{workspace}")
        return await self.ensure_local(workspace)

    async def _workspace(self, name: str) -> workspaces_pb2.Workspace:
        try:
            return await self._stub.GetWorkspace(workspaces_pb2.GetWorkspaceRequest(name=name), timeout=10)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from error
