"""Workspaces in MongoDB."""

from stellwerk_platform.errors import NotFound
from stellwerk_platform.mongo import Collection, Database
from stellwerk_protos.registry.v1.workspaces_pb2 import Workspace


class WorkspaceStore(Collection[Workspace]):
    """The workspaces, which everything else in the registry lies in."""

    def __init__(self, database: Database) -> None:
        super().__init__(database, "workspaces", Workspace)
        self._seen: set[str] = set()

    async def check(self, workspace_id: str) -> None:
        """Raises `NotFound` unless the workspace exists."""
        name = f"workspaces/{workspace_id}"
        if name in self._seen:
            return
        if await self.find(name) is None:
            raise NotFound(
                "WORKSPACE_NOT_FOUND",
                f"There is no workspace {workspace_id!r}.",
                f"Check `stellwerk workspace list`, or `stellwerk workspace create {workspace_id}`.",
            )
        self._seen.add(name)
