"""WorkspaceService: parse, store, reply."""

from typing import Any

from stellwerk_platform import names
from stellwerk_platform.auth import current_caller
from stellwerk_platform.checks import check_description, check_tags
from stellwerk_platform.journal import Fact
from stellwerk_protos.registry.v1 import workspaces_pb2 as pb
from stellwerk_protos.registry.v1 import workspaces_pb2_grpc
from stellwerk_registry.workspaces.store import WorkspaceStore


class WorkspaceService(workspaces_pb2_grpc.WorkspaceServiceServicer):
    """The servicer."""

    def __init__(self, store: WorkspaceStore) -> None:
        self._store = store

    async def CreateWorkspace(self, request: pb.CreateWorkspaceRequest, context: Any) -> pb.Workspace:
        names.check_id("workspaces", request.workspace_id)
        check_description(request.description)
        check_tags(request.tags)
        workspace = pb.Workspace(
            name=f"workspaces/{request.workspace_id}",
            creator=current_caller().subject,
            description=request.description,
            tags=request.tags,
        )
        return await self._store.create(
            workspace, Fact("created", "REQUESTED", f"{workspace.creator} created it."), request.request_id
        )

    async def GetWorkspace(self, request: pb.GetWorkspaceRequest, context: Any) -> pb.Workspace:
        (workspace,) = names.parse("workspaces/*", request.name)
        await self._store.check(workspace)
        return await self._store.get(request.name)

    async def ListWorkspaces(
        self, request: pb.ListWorkspacesRequest, context: Any
    ) -> pb.ListWorkspacesResponse:
        items, token = await self._store.page({}, request.page_size, request.page_token)
        return pb.ListWorkspacesResponse(workspaces=items, next_page_token=token)
