"""All workspaces: making, changing and deleting them."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from google.protobuf.field_mask_pb2 import FieldMask

from stellwerk import names
from stellwerk._async.core import AsyncCore
from stellwerk_protos.registry.v1 import workspaces_pb2, workspaces_pb2_grpc

# Counting what a workspace holds takes as long as thousands of files.
_COUNTED = 1_000
_POLL_SECONDS = 0.5


class AsyncWorkspaces:
    """The workspaces that the caller may see."""

    def __init__(self, core: AsyncCore) -> None:
        self._core = core
        self._stub = workspaces_pb2_grpc.WorkspaceServiceStub(core.channel)

    async def create(
        self, name: str, *, description: str = "", tags: Mapping[str, str] | None = None
    ) -> workspaces_pb2.Workspace:
        """Creates a workspace."""
        request = workspaces_pb2.CreateWorkspaceRequest(
            workspace_id=name.removeprefix("workspaces/"), description=description, tags=tags
        )
        return await self._core.call(self._stub.CreateWorkspace, request)

    async def get(self, name: str) -> workspaces_pb2.Workspace:
        """Returns one workspace."""
        request = workspaces_pb2.GetWorkspaceRequest(name=names.workspace(name))
        return await self._core.call(self._stub.GetWorkspace, request)

    async def list(self, *, limit: int | None = None) -> Sequence[workspaces_pb2.Workspace]:
        """The workspaces, by name."""
        request = workspaces_pb2.ListWorkspacesRequest()
        pages = await self._core.pages(self._stub.ListWorkspaces, request, limit)
        return [workspace for page in pages for workspace in page.workspaces]

    async def update(
        self,
        name: str,
        *,
        description: str | None = None,
        tags: Mapping[str, str] | None = None,
        remove_tags: Iterable[str] = (),
        default_datastore: str | None = None,
    ) -> workspaces_pb2.Workspace:
        """Changes what is given; `tags` are added to those that there are.

        Raises `StellwerkError` with REVISION_CHANGED when somebody else was faster.
        """
        workspace = await self.get(name)
        revision = workspace.revision
        paths = []
        if description is not None:
            workspace.description = description
            paths.append("description")
        removed = list(remove_tags)
        if tags or removed:
            for tag in removed:
                workspace.tags.pop(tag, None)
            workspace.tags.update(tags or {})
            paths.append("tags")
        if default_datastore is not None:
            workspace.default_datastore = names.resource(workspace.name, "datastores", default_datastore)
            paths.append("default_datastore")
        request = workspaces_pb2.UpdateWorkspaceRequest(
            workspace=workspace, update_mask=FieldMask(paths=paths), revision=revision
        )
        return await self._core.call(self._stub.UpdateWorkspace, request)

    async def delete(
        self, name: str, *, force: bool = False, dry_run: bool = False
    ) -> workspaces_pb2.DeleteWorkspaceResponse:
        """Begins to delete a workspace with everything in it; with `dry_run` only counts what is there.

        `force` ends runs, deployments and endpoints; without it they are a reason to refuse.
        `wait_deleted` waits for the end.
        """
        request = workspaces_pb2.DeleteWorkspaceRequest(
            name=names.workspace(name), force=force, validate_only=dry_run
        )
        return await self._core.call(self._stub.DeleteWorkspace, request, files=_COUNTED)

    async def deletion(self, name: str) -> workspaces_pb2.WorkspaceDeletion:
        """What became of a deletion; `name` is the `deletion` of the answer to `delete`."""
        request = workspaces_pb2.GetWorkspaceDeletionRequest(name=name)
        return await self._core.call(self._stub.GetWorkspaceDeletion, request)

    async def wait_deleted(
        self, name: str, progress: Callable[[workspaces_pb2.WorkspaceDeletion], None] | None = None
    ) -> workspaces_pb2.WorkspaceDeletion:
        """The same once everything is gone; `progress` is called with what is known until then."""
        while True:
            deletion = await self.deletion(name)
            if progress is not None:
                progress(deletion)
            if deletion.HasField("end_time"):
                return deletion
            await self._core.pause(_POLL_SECONDS)
