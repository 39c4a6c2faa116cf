# Generated from ../_async/members.py by scripts/generate_sync.py; do not edit.
"""Who may do what in a workspace."""

from collections.abc import Sequence

from stellwerk import names
from stellwerk._sync.core import Core
from stellwerk.roles import role_of
from stellwerk_protos.registry.v1 import members_pb2, members_pb2_grpc


class Members:
    """The members of a workspace. Roles are owner, contributor, data-scientist, compute-operator, reader."""

    def __init__(self, core: Core, parent: str) -> None:
        self._core, self._parent = core, parent
        self._stub = members_pb2_grpc.MemberServiceStub(core.channel)

    def set(self, user: str, role: str) -> members_pb2.Member:
        """Adds a person, or changes the role of a member.

        Raises `StellwerkError`: USER_NOT_FOUND, and LAST_OWNER when nobody else would be an owner.
        """
        request = members_pb2.SetMemberRequest(name=self._name(user), role=role_of(role))
        return self._core.call(self._stub.SetMember, request)

    def get(self, user: str) -> members_pb2.Member:
        """One member; raises `StellwerkError` with reason MEMBER_NOT_FOUND."""
        return self._core.call(self._stub.GetMember, members_pb2.GetMemberRequest(name=self._name(user)))

    def list(self, *, limit: int | None = None) -> Sequence[members_pb2.Member]:
        """The members by name."""
        request = members_pb2.ListMembersRequest(parent=self._parent)
        pages = self._core.pages(self._stub.ListMembers, request, limit)
        return [member for page in pages for member in page.members]

    def remove(self, user: str) -> members_pb2.Member:
        """Takes a member's role away: what they have open in the workspace ends within a second."""
        request = members_pb2.RemoveMemberRequest(name=self._name(user))
        return self._core.call(self._stub.RemoveMember, request)

    def _name(self, user: str) -> str:
        return names.resource(self._parent, "members", user.removeprefix("users/"))
