"""WorkspaceService: parse, store, reply."""

import uuid
from collections.abc import Sequence
from typing import Any

from stellwerk_platform import names
from stellwerk_platform.auth import Caller, current_caller
from stellwerk_platform.errors import FailedPrecondition, NotFound
from stellwerk_platform.journal import Fact
from stellwerk_platform.memberships import Memberships
from stellwerk_platform.roles import USER
from stellwerk_protos.registry.v1 import workspaces_pb2 as pb
from stellwerk_protos.registry.v1 import workspaces_pb2_grpc
from stellwerk_registry.deletion.remover import Remover
from stellwerk_registry.deletion.store import DeletionStore
from stellwerk_registry.workspaces import domain
from stellwerk_registry.workspaces.store import WorkspaceStore, unknown

_SHOWN = 10


class WorkspaceService(workspaces_pb2_grpc.WorkspaceServiceServicer):
    """The servicer."""

    def __init__(
        self, store: WorkspaceStore, deletions: DeletionStore, remover: Remover, memberships: Memberships
    ) -> None:
        self._store = store
        self._deletions = deletions
        self._remover = remover
        self._memberships = memberships

    async def CreateWorkspace(self, request: pb.CreateWorkspaceRequest, context: Any) -> pb.Workspace:
        workspace = domain.new(request, current_caller().subject, self._store.database.namespace)
        fact = Fact("created", "REQUESTED", f"{workspace.creator} created it.")
        created = await self._store.create_with_parts(workspace, fact, request.request_id)
        self._memberships.forget(created.creator, created.name)
        return created

    async def GetWorkspace(self, request: pb.GetWorkspaceRequest, context: Any) -> pb.Workspace:
        names.parse("workspaces/*", request.name)
        workspace = await self._store.find(request.name)
        if workspace is None:
            raise unknown(request.name)
        return workspace

    async def UpdateWorkspace(self, request: pb.UpdateWorkspaceRequest, context: Any) -> pb.Workspace:
        (workspace,) = names.parse("workspaces/*", request.workspace.name)
        paths = list(request.update_mask.paths)
        domain.check_update(request.workspace, paths)
        await self._store.check(workspace)
        return await self._store.change(
            request.workspace, paths, str(request.revision) if request.revision else ""
        )

    async def DeleteWorkspace(
        self, request: pb.DeleteWorkspaceRequest, context: Any
    ) -> pb.DeleteWorkspaceResponse:
        workspace = await self.GetWorkspace(pb.GetWorkspaceRequest(name=request.name), context)
        data = await self._remover.count(request.name)
        if request.validate_only:
            return pb.DeleteWorkspaceResponse(data=data)
        living = sorted({name for part in data.values() for name in part.living})
        if living and not request.force and not workspace.HasField("delete_time"):
            raise in_use(request.name, living)
        deletion = await self._deletions.begin(
            pb.WorkspaceDeletion(
                name=f"deletions/{uuid.uuid4().hex}",
                creator=current_caller().subject,
                workspace=request.name,
            )
        )
        self._store.known.close(request.name)
        self._remover.wake()
        return pb.DeleteWorkspaceResponse(data=data, deletion=deletion.name)

    async def GetWorkspaceDeletion(
        self, request: pb.GetWorkspaceDeletionRequest, context: Any
    ) -> pb.WorkspaceDeletion:
        names.parse("deletions/*", request.name)
        deletion = await self._deletions.find(request.name)
        caller = current_caller()
        if deletion is None or not (_sees_all(caller) or deletion.creator == caller.subject):
            raise NotFound(
                "DELETION_NOT_FOUND",
                f"There is no {request.name[:200]} of yours.",
                "Use the name that `stellwerk workspace delete` printed.",
            )
        return deletion

    async def ListWorkspaces(
        self, request: pb.ListWorkspacesRequest, context: Any
    ) -> pb.ListWorkspacesResponse:
        size, token = request.page_size, request.page_token
        if _sees_all(current_caller()):
            items, token = await self._store.page({}, size, token)
        else:
            items, token = await self._store.page_of(current_caller().subject, size, token)
        return pb.ListWorkspacesResponse(workspaces=items, next_page_token=token)


def in_use(workspace: str, living: Sequence[str]) -> FailedPrecondition:
    """The error for a workspace in which something lives."""
    shown = ", ".join(name.removeprefix(f"{workspace}/") for name in living[:_SHOWN])
    more = f" and {len(living) - _SHOWN} more" if len(living) > _SHOWN else ""
    return FailedPrecondition(
        "WORKSPACE_IN_USE",
        f"{len(living)} things live in {workspace}: {shown}{more}.",
        "End them first, or delete with --force, which ends them.",
        {"count": str(len(living))},
    )


def _sees_all(caller: Caller) -> bool:
    return caller.role != USER or caller.administrator
