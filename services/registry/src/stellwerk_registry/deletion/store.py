"""Deletions of workspaces in MongoDB. They belong to the platform and outlast their workspace."""

from pymongo import ASCENDING, IndexModel

from stellwerk_platform.documents import now
from stellwerk_platform.journal import Fact
from stellwerk_platform.mongo import Collection, Database, Transaction
from stellwerk_protos.platform.v1.platform_pb2 import WorkspaceData
from stellwerk_protos.registry.v1.workspaces_pb2 import Workspace, WorkspaceDeletion
from stellwerk_registry.workspaces.store import WorkspaceStore


class DeletionStore(Collection[WorkspaceDeletion]):
    """The collection `workspace_deletions`."""

    def __init__(self, database: Database, workspaces: WorkspaceStore) -> None:
        indexes = [IndexModel([("workspace", ASCENDING), ("end_time", ASCENDING)])]
        super().__init__(database, "workspace_deletions", WorkspaceDeletion, indexes=indexes)
        self._workspaces = workspaces

    async def unfinished(self, workspace: str = "") -> list[WorkspaceDeletion]:
        """Those that go on: of one workspace, or all."""
        where = {"end_time": {"$exists": False}} | ({"workspace": workspace} if workspace else {})
        return await self.all(where)

    async def begin(self, deletion: WorkspaceDeletion) -> WorkspaceDeletion:
        """Marks the workspace: it takes nothing new from now on. Raises `NotFound`.

        Somebody who asks at the same moment gets the same deletion.
        """

        async def work(tx: Transaction) -> WorkspaceDeletion | None:
            marked = False

            def mark(workspace: Workspace) -> Fact | None:
                nonlocal marked
                marked = not workspace.HasField("delete_time")
                if not marked:
                    return None
                workspace.delete_time.CopyFrom(now())
                return Fact("deleting", "REQUESTED", f"{deletion.creator} deletes it with all that it holds.")

            await self._workspaces.update_in(tx, deletion.workspace, mark)
            if not marked:
                return None
            fact = Fact("created", "REQUESTED", f"{deletion.creator} deletes {deletion.workspace}.")
            return await self.create_in(tx, deletion, fact)

        created = await self.database.commit(work)
        return created or (await self.unfinished(deletion.workspace))[0]

    async def note(self, name: str, service: str, found: WorkspaceData) -> None:
        """Adds up what a service has removed."""

        def add(deletion: WorkspaceDeletion) -> Fact | None:
            total = deletion.removed[service]
            for label, count in found.counts.items():
                total.counts[label] += count
            total.size_bytes += found.size_bytes
            return Fact("progressed", "REMOVED", f"{service} has removed more of {deletion.workspace}.")

        await self.update(name, add)

    async def finish(self, name: str) -> None:
        """Frees the name of the workspace, and ends the deletion, in one transaction."""

        async def work(tx: Transaction) -> None:
            def end(deletion: WorkspaceDeletion) -> Fact | None:
                if deletion.HasField("end_time"):
                    return None
                deletion.end_time.CopyFrom(now())
                return Fact("completed", "REMOVED", f"{deletion.workspace} is gone.")

            deletion = await self.update_in(tx, name, end)
            await self._workspaces.raw.delete_one(
                {"_id": deletion.workspace, "delete_time": {"$exists": True}}, session=tx.session
            )

        await self.database.commit(work)
