"""UserService, the part about people; `keys.py` has the one about keys."""

from typing import Any

from stellwerk_platform.auth import current_caller
from stellwerk_platform.errors import InvalidArgument
from stellwerk_platform.journal import Fact
from stellwerk_protos.secrets.v1 import users_pb2 as pb
from stellwerk_secrets.people import access, domain
from stellwerk_secrets.people.keys import KeyMethods
from stellwerk_secrets.people.store import Invitation


class UserService(KeyMethods):
    """users.proto."""

    async def CreateUser(self, request: pb.CreateUserRequest, context: Any) -> pb.CreateUserResponse:
        caller = await access.require_administrator(self._people)
        user = pb.User(
            name=domain.check_user_id(request.user_id),
            display_name=domain.check_display_name(request.display_name),
            email=domain.check_email(request.email),
            administrator=request.administrator,
            creator=caller.subject,
        )
        fact = Fact("created", "REQUESTED", f"{caller.subject} created it.")
        return _invited(*await self._people.create_user(user, fact, request.request_id))

    async def GetUser(self, request: pb.GetUserRequest, context: Any) -> pb.User:
        name = access.resolve(request.name)
        user = await self._people.users.get(name)
        return user if await access.sees_all_of(self._people, name) else _public(user)

    async def ListUsers(self, request: pb.ListUsersRequest, context: Any) -> pb.ListUsersResponse:
        users, token = await self._people.users.page({}, request.page_size, request.page_token)
        everything = await access.sees_all_of(self._people, "")
        me = current_caller().subject
        shown = [user if everything or user.name == me else _public(user) for user in users]
        return pb.ListUsersResponse(users=shown, next_page_token=token)

    async def UpdateUser(self, request: pb.UpdateUserRequest, context: Any) -> pb.User:
        caller = await access.require_administrator(self._people)
        name = access.resolve(request.user.name)
        if not request.update_mask.paths:
            raise InvalidArgument(
                "INVALID_UPDATE_MASK", "Nothing is named that should change.", "Name it in update_mask."
            )
        return await self._people.update_user(
            name,
            lambda user: domain.update(user, request.user, request.update_mask.paths, caller.subject),
            str(request.revision or ""),
        )

    async def DisableUser(self, request: pb.DisableUserRequest, context: Any) -> pb.User:
        caller = await access.require_administrator(self._people)
        return await self._people.disable(access.resolve(request.name), caller.subject)

    async def EnableUser(self, request: pb.EnableUserRequest, context: Any) -> pb.CreateUserResponse:
        caller = await access.require_administrator(self._people)
        return _invited(*await self._people.enable(access.resolve(request.name), caller.subject))


def _invited(user: pb.User, invitation: Invitation | None) -> pb.CreateUserResponse:
    answer = pb.CreateUserResponse(user=user)
    if invitation is not None:
        answer.invitation = invitation.text
        answer.expire_time.FromDatetime(invitation.expire_time)
    return answer


def _public(user: pb.User) -> pb.User:
    """What people see of each other: enough to name a member of a workspace."""
    return pb.User(name=user.name, display_name=user.display_name, disabled=user.disabled)
