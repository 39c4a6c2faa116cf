# Generated from ../_async/people.py by scripts/generate_sync.py; do not edit.
"""People, their API keys, and how somebody without a key gets one."""

from collections.abc import Sequence
from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from stellwerk._sync.core import Core
from stellwerk_protos.secrets.v1 import sessions_pb2, sessions_pb2_grpc, users_pb2, users_pb2_grpc

_ME = "users/me"


class Users:
    """The people of this Stellwerk. Changing them is for administrators."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._stub = users_pb2_grpc.UserServiceStub(core.channel)

    def create(
        self, name: str, *, display_name: str = "", email: str = "", administrator: bool = False
    ) -> users_pb2.CreateUserResponse:
        """Creates a person; the answer has the invitation, which gives one first key within a week."""
        request = users_pb2.CreateUserRequest(
            user_id=name.removeprefix("users/"),
            display_name=display_name,
            email=email,
            administrator=administrator,
        )
        return self._core.call(self._stub.CreateUser, request)

    def get(self, name: str = _ME) -> users_pb2.User:
        """One person, the caller by default."""
        return self._core.call(self._stub.GetUser, users_pb2.GetUserRequest(name=_user(name)))

    def list(self, *, limit: int | None = None) -> Sequence[users_pb2.User]:
        """The people, by name."""
        pages = self._core.pages(self._stub.ListUsers, users_pb2.ListUsersRequest(), limit)
        return [user for page in pages for user in page.users]

    def update(
        self,
        name: str,
        *,
        display_name: str | None = None,
        email: str | None = None,
        administrator: bool | None = None,
    ) -> users_pb2.User:
        """Changes what is given. Another e-mail address lets go of the account that was bound."""
        request = users_pb2.UpdateUserRequest(user=users_pb2.User(name=_user(name)))
        given = {"display_name": display_name, "email": email, "administrator": administrator}
        for field, value in given.items():
            if value is not None:
                setattr(request.user, field, value)
                request.update_mask.paths.append(field)
        return self._core.call(self._stub.UpdateUser, request)

    def disable(self, name: str) -> users_pb2.User:
        """Ends every key and token of a person; what they made stays."""
        return self._core.call(self._stub.DisableUser, users_pb2.DisableUserRequest(name=_user(name)))

    def enable(self, name: str) -> users_pb2.CreateUserResponse:
        """Lets a person in again, or once more: the answer has a new invitation."""
        return self._core.call(self._stub.EnableUser, users_pb2.EnableUserRequest(name=_user(name)))


class Keys:
    """API keys: the caller's own, unless a person is named."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._stub = users_pb2_grpc.UserServiceStub(core.channel)

    def create(
        self, name: str = "", *, display_name: str = "", expires: datetime | None = None
    ) -> users_pb2.CreateApiKeyResponse:
        """Creates a key of the caller. `key` of the answer is the key itself, shown this once."""
        request = users_pb2.CreateApiKeyRequest(parent=_ME, key_id=name, display_name=display_name)
        if expires is not None:
            moment = Timestamp()
            moment.FromDatetime(expires)
            request.expire_time.CopyFrom(moment)
        return self._core.call(self._stub.CreateApiKey, request)

    def list(self, user: str = _ME, *, limit: int | None = None) -> Sequence[users_pb2.ApiKey]:
        """The keys of a person, newest first, with those that ended lately."""
        request = users_pb2.ListApiKeysRequest(parent=_user(user))
        pages = self._core.pages(self._stub.ListApiKeys, request, limit)
        return [key for page in pages for key in page.api_keys]

    def revoke(self, name: str, *, user: str = _ME) -> users_pb2.ApiKey:
        """Ends a key, by its last or its full name; everywhere within a second."""
        full = name if name.startswith("users/") else f"{_user(user)}/keys/{name}"
        return self._core.call(self._stub.RevokeApiKey, users_pb2.RevokeApiKeyRequest(name=full))


class Sessions:
    """Logins; none of these needs a key."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._stub = sessions_pb2_grpc.SessionServiceStub(core.channel)

    def options(self) -> sessions_pb2.LoginOptions:
        """Whether there is an OpenID provider, and which."""
        return self._core.call(self._stub.GetLoginOptions, sessions_pb2.GetLoginOptionsRequest())

    def exchange(self, id_token: str, *, nonce: str = "", display_name: str = "") -> sessions_pb2.Session:
        """A key that ends, for an ID token of that provider."""
        request = sessions_pb2.ExchangeIdTokenRequest(
            id_token=id_token, nonce=nonce, display_name=display_name
        )
        return self._core.call(self._stub.ExchangeIdToken, request)

    def accept(self, invitation: str, *, display_name: str = "") -> sessions_pb2.Session:
        """A first key for an invitation, which is used up by that."""
        request = sessions_pb2.AcceptInvitationRequest(invitation=invitation, display_name=display_name)
        return self._core.call(self._stub.AcceptInvitation, request)


def _user(name: str) -> str:
    return name if name.startswith("users/") else f"users/{name}"
