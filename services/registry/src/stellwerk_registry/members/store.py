"""Members in MongoDB. A workspace never loses its last owner.

Who was removed keeps a document without a role, so that the revisions of somebody who comes
back count on.
"""

from dataclasses import replace

from pymongo import ASCENDING, IndexModel
from pymongo.errors import DuplicateKeyError

from stellwerk_platform import names
from stellwerk_platform.documents import Document
from stellwerk_platform.errors import FailedPrecondition
from stellwerk_platform.journal import Fact
from stellwerk_platform.memberships import role_name, user_of
from stellwerk_platform.mongo import Collection, Database, Session, Transaction, missing
from stellwerk_protos.registry.v1 import members_pb2 as pb
from stellwerk_protos.registry.v1.workspaces_pb2 import Workspace

# Documents of those who have a role.
IS_MEMBER: Document = {"role": {"$exists": True}}


def member_name(workspace: str, user: str) -> str:
    """`workspaces/demo/members/alice` for `workspaces/demo` and `users/alice`."""
    return f"{workspace}/members/{names.id_of(user)}"


def _extra(member: pb.Member) -> Document:
    return {"workspace": names.parent_of(member.name)}


class MemberStore(Collection[pb.Member]):
    """The members of all workspaces."""

    def __init__(self, database: Database) -> None:
        indexes = [
            IndexModel([("workspace", ASCENDING), ("_id", ASCENDING)], name="workspace"),
            IndexModel([("user", ASCENDING), ("_id", ASCENDING)], name="user"),
        ]
        super().__init__(database, "members", pb.Member, indexes=indexes, extra=_extra)
        self._workspaces = database.raw["workspaces"]

    async def member(self, name: str, session: Session | None = None) -> pb.Member:
        """Somebody who has a role; raises `NotFound`."""
        member = await self.find(name, session)
        if member is None or not member.role:
            raise missing(pb.Member, name)
        return member

    async def role(self, user: str, workspace: str) -> str:
        """The role of a person; "" for none."""
        member = await self.find(member_name(workspace, user))
        return role_name(member.role) if member is not None else ""

    async def of(self, user: str) -> list[pb.Member]:
        """All memberships of a person, by workspace."""
        return sorted(await self.all({"user": user, **IS_MEMBER}), key=lambda member: member.name)

    async def add_creator(self, tx: Transaction, workspace: Workspace) -> None:
        """Makes the person who creates a workspace its first owner, in the transaction that creates it."""
        if workspace.creator.startswith("users/"):
            member = _member(workspace.name, workspace.creator, pb.ROLE_OWNER)
            await self.create_in(tx, member, replace(_added("WORKSPACE_CREATED"), cause=tx.last_event()))

    async def put(self, name: str, role: "pb.Role.ValueType") -> pb.Member:
        """Adds a member or changes the role; raises `NotFound` for a workspace that is not there."""
        while True:
            try:
                return await self.database.commit(lambda tx: self._put_in(tx, name, role))
            except DuplicateKeyError:
                # Somebody else has added the same person in this moment.
                continue

    async def _put_in(self, tx: Transaction, name: str, role: "pb.Role.ValueType") -> pb.Member:
        workspace = await self._lock(tx, name)
        known = await self.find(name, tx.session)
        if known is None:
            return await self.create_in(tx, _member(workspace, user_of(name), role), _added("REQUESTED"))
        if known.role == pb.ROLE_OWNER != role:
            await self._check_not_last(tx, workspace)

        def change(member: pb.Member) -> Fact | None:
            before, member.role = member.role, role
            if before == pb.ROLE_UNSPECIFIED:
                return _added("REQUESTED")
            text = f"The role is {role_name(role)} now."
            return None if before == role else Fact("role_changed", "REQUESTED", text)

        return await self.update_in(tx, name, change)

    async def remove(self, name: str) -> pb.Member:
        """Takes a member's role away; raises `NotFound`."""

        async def work(tx: Transaction) -> pb.Member:
            workspace = await self._lock(tx, name)
            member = await self.member(name, tx.session)
            if member.role == pb.ROLE_OWNER:
                await self._check_not_last(tx, workspace)
            return await self.update_in(tx, name, _removed)

        return await self.database.commit(work)

    async def _lock(self, tx: Transaction, name: str) -> str:
        """Has two changes of the members of one workspace follow each other; returns its name."""
        workspace = names.parent_of(name)
        result = await self._workspaces.update_one(
            {"_id": workspace}, {"$inc": {"member_changes": 1}}, session=tx.session
        )
        if result.matched_count == 0:
            raise missing(Workspace, workspace)
        return workspace

    async def _check_not_last(self, tx: Transaction, workspace: str) -> None:
        owners = await self.raw.count_documents(
            {"workspace": workspace, "role": pb.Role.Name(pb.ROLE_OWNER)}, limit=2, session=tx.session
        )
        if owners < 2:
            raise FailedPrecondition(
                "LAST_OWNER",
                f"{workspace} would be left without an owner.",
                "Make somebody else an owner first: `stellwerk member add USER --role owner`.",
            )


def _member(workspace: str, user: str, role: "pb.Role.ValueType") -> pb.Member:
    return pb.Member(name=member_name(workspace, user), user=user, role=role)


def _removed(member: pb.Member) -> Fact:
    member.role = pb.ROLE_UNSPECIFIED
    return Fact("removed", "REQUESTED", "The role was taken away.")


def _added(code: str) -> Fact:
    return Fact("added", code)
