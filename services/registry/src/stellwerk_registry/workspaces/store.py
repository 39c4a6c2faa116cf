"""Workspaces in MongoDB."""

from pymongo.errors import DuplicateKeyError

from stellwerk_platform import names
from stellwerk_platform.errors import NotFound
from stellwerk_platform.journal import Fact
from stellwerk_platform.mongo import Collection, Database, Transaction
from stellwerk_platform.workspaces import Workspaces
from stellwerk_protos.registry.v1.datastores_pb2 import Datastore
from stellwerk_protos.registry.v1.workspaces_pb2 import Workspace
from stellwerk_registry.members.store import IS_MEMBER, MemberStore
from stellwerk_registry.workspaces import domain


class WorkspaceStore(Collection[Workspace]):
    """The workspaces, which everything else in the registry lies in."""

    def __init__(self, database: Database, datastores: Collection[Datastore], members: MemberStore) -> None:
        super().__init__(database, "workspaces", Workspace)
        self._datastores = datastores
        self._members = members
        self.known = Workspaces(database, self._known)

    async def check(self, workspace_id: str) -> None:
        """Raises `NotFound` unless the workspace exists, `FailedPrecondition` while it is being deleted."""
        await self.known.check(f"workspaces/{workspace_id}")

    async def _known(self, name: str) -> Workspace:
        workspace = await self.find(name)
        if workspace is None:
            raise unknown(name)
        return workspace

    async def create_with_parts(self, workspace: Workspace, fact: Fact, request_id: str) -> Workspace:
        """Stores a new workspace with its datastore and its first owner; as `create`."""
        if await self.find(workspace.name) is None:
            # One of that name may have been deleted.
            self.database.closed.discard(workspace.name)
        return await self.create(workspace, fact, request_id, self._with_parts_in)

    async def _with_parts_in(self, tx: Transaction, workspace: Workspace) -> None:
        await self._parts_in(tx, workspace)
        await self._members.add_creator(tx, workspace)

    async def _parts_in(self, tx: Transaction, workspace: Workspace) -> None:
        fact = Fact("created", "WORKSPACE_CREATED", "It comes with its workspace.", cause=tx.last_event())
        await self._datastores.create_in(tx, domain.default_datastore(workspace), fact)

    async def change(self, wanted: Workspace, paths: list[str], etag: str) -> Workspace:
        """Takes over the named fields; raises `NotFound`, and `Aborted` when `etag` is not the revision."""

        async def work(tx: Transaction) -> Workspace:
            changed = await self.update_in(tx, wanted.name, lambda w: domain.update(w, wanted, paths), etag)
            # In the same transaction: whoever deletes the datastore writes the workspace too.
            if "default_datastore" in paths:
                await self._datastores.get(changed.default_datastore, tx.session)
            return changed

        return await self.database.commit(work)

    async def add_parts(self) -> None:
        """Gives parts to workspaces that were made before there were any (migration 1)."""
        async for document in self.raw.find({"default_datastore": {"$exists": False}}, {"_id": 1}):
            try:
                await self.database.commit(lambda tx, name=document["_id"]: self._add_parts_in(tx, name))  # type: ignore[misc]
            except DuplicateKeyError:
                continue  # another replica was faster

    async def _add_parts_in(self, tx: Transaction, name: str) -> None:
        def change(workspace: Workspace) -> Fact | None:
            if workspace.default_datastore:
                return None
            domain.give_parts(workspace, self.database.namespace)
            return Fact("updated", "MIGRATED", "It got its linked parts.")

        workspace = await self.update_in(tx, name, change)
        if await self._datastores.find(workspace.default_datastore, tx.session) is None:
            await self._parts_in(tx, workspace)

    async def add_owners(self) -> None:
        """Makes who created a workspace its owner where nobody is a member (migration 2)."""
        async for document in self.raw.find({}, {"_id": 1}):
            name = document["_id"]
            if await self._members.raw.find_one({"workspace": name}) is None:
                workspace = await self.get(name)
                try:
                    await self.database.commit(lambda tx, w=workspace: self._members.add_creator(tx, w))  # type: ignore[misc]
                except DuplicateKeyError:
                    continue  # another replica was faster

    async def page_of(self, user: str, size: int, token: str) -> tuple[list[Workspace], str]:
        """One page of those in which a person has a role, by name."""
        members, token = await self._members.page({"user": user, **IS_MEMBER}, size, token)
        wanted = [names.parent_of(member.name) for member in members]
        found = await self.all({"_id": {"$in": wanted}})
        return sorted(found, key=lambda workspace: workspace.name), token


def unknown(name: str) -> NotFound:
    """The error for a workspace that does not exist."""
    workspace_id = name.removeprefix("workspaces/")
    return NotFound(
        "WORKSPACE_NOT_FOUND",
        f"There is no workspace {workspace_id!r}.",
        f"Check `stellwerk workspace list`, or `stellwerk workspace create {workspace_id}`.",
    )
