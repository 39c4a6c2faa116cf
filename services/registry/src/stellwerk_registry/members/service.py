"""MemberService: parse, store, reply."""

from typing import Any

import grpc

from stellwerk_platform import names
from stellwerk_platform.errors import InvalidArgument, from_rpc
from stellwerk_platform.memberships import Memberships, user_of
from stellwerk_protos.registry.v1 import members_pb2 as pb
from stellwerk_protos.registry.v1 import members_pb2_grpc
from stellwerk_protos.secrets.v1 import users_pb2, users_pb2_grpc
from stellwerk_registry.members.store import IS_MEMBER, MemberStore, member_name

_NAME = "workspaces/*/members/*"
_USER = "users/*"


class MemberService(members_pb2_grpc.MemberServiceServicer):
    """The servicer."""

    def __init__(
        self, store: MemberStore, memberships: Memberships, users: "users_pb2_grpc.UserServiceAsyncStub"
    ) -> None:
        self._store = store
        self._users = users
        # What this process remembers itself must not lag behind what it has just answered.
        self._memberships = memberships

    async def SetMember(self, request: pb.SetMemberRequest, context: Any) -> pb.Member:
        names.parse(_NAME, request.name)
        if request.role not in (role for role in pb.Role.values() if role != pb.ROLE_UNSPECIFIED):
            raise InvalidArgument(
                "INVALID_ROLE",
                "The request names no role.",
                "Use owner, contributor, data-scientist, compute-operator or reader.",
            )
        if await self._store.role(user_of(request.name), names.parent_of(request.name)) == "":
            await self._check_user(user_of(request.name))
        member = await self._store.put(request.name, request.role)
        self._memberships.forget(member.user, names.parent_of(member.name))
        return member

    async def _check_user(self, user: str) -> None:
        """Raises `NotFound` for nobody."""
        try:
            await self._users.GetUser(users_pb2.GetUserRequest(name=user), timeout=10)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from error

    async def GetMember(self, request: pb.GetMemberRequest, context: Any) -> pb.Member:
        names.parse(_NAME, request.name)
        return await self._store.member(request.name)

    async def ListMembers(self, request: pb.ListMembersRequest, context: Any) -> pb.ListMembersResponse:
        names.parse("workspaces/*", request.parent)
        where = {"workspace": request.parent, **IS_MEMBER}
        items, token = await self._store.page(where, request.page_size, request.page_token)
        return pb.ListMembersResponse(members=items, next_page_token=token)

    async def RemoveMember(self, request: pb.RemoveMemberRequest, context: Any) -> pb.Member:
        names.parse(_NAME, request.name)
        member = await self._store.remove(request.name)
        self._memberships.forget(member.user, names.parent_of(member.name))
        return member

    async def GetAccess(self, request: pb.GetAccessRequest, context: Any) -> pb.Access:
        names.parse(_USER, request.user)
        names.parse("workspaces/*", request.workspace)
        member = await self._store.find(member_name(request.workspace, request.user))
        role = member.role if member is not None else pb.ROLE_UNSPECIFIED
        return pb.Access(workspace=request.workspace, role=role)

    async def ListAccess(self, request: pb.ListAccessRequest, context: Any) -> pb.ListAccessResponse:
        names.parse(_USER, request.user)
        members = await self._store.of(request.user)
        access = [pb.Access(workspace=names.parent_of(member.name), role=member.role) for member in members]
        return pb.ListAccessResponse(access=access)
