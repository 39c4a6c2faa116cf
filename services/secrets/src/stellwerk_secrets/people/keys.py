"""UserService, the part about keys."""

from typing import Any

from stellwerk_platform import names
from stellwerk_protos.secrets.v1 import users_pb2 as pb
from stellwerk_protos.secrets.v1 import users_pb2_grpc
from stellwerk_secrets.people import access, domain
from stellwerk_secrets.people.store import People
from stellwerk_secrets.people.uses import Uses


class KeyMethods(users_pb2_grpc.UserServiceServicer):
    """The methods about keys; `users.py` adds the others."""

    def __init__(self, people: People, uses: Uses) -> None:
        self._people = people
        self._uses = uses

    async def CreateApiKey(self, request: pb.CreateApiKeyRequest, context: Any) -> pb.CreateApiKeyResponse:
        user = access.resolve(request.parent)
        access.require_self(user)
        issued = domain.new_key()
        key = domain.make_key(
            user,
            request.key_id,
            issued.text,
            pb.API_KEY_ORIGIN_CREATED,
            display_name=request.display_name,
            expire_time=domain.check_expiry(request.expire_time if request.HasField("expire_time") else None),
        )
        created = await self._people.add_key(key, issued.digest)
        return pb.CreateApiKeyResponse(api_key=created, key=issued.text)

    async def ListApiKeys(self, request: pb.ListApiKeysRequest, context: Any) -> pb.ListApiKeysResponse:
        user = access.resolve(request.parent)
        await access.require_self_or_administrator(self._people, user)
        keys, token = await self._people.keys.page(
            {"owner": user}, request.page_size, request.page_token, key="create_time", descending=True
        )
        uses = await self._uses.of(key.name for key in keys)
        for key in keys:
            if key.name in uses:
                key.last_use_time.FromDatetime(uses[key.name])
        return pb.ListApiKeysResponse(api_keys=keys, next_page_token=token)

    async def RevokeApiKey(self, request: pb.RevokeApiKeyRequest, context: Any) -> pb.ApiKey:
        parent, _, key_id = request.name.rpartition("/keys/")
        user = access.resolve(parent)
        name = f"{user}/keys/{names.check_id('keys', key_id)}"
        caller = await access.require_self_or_administrator(self._people, user)
        return await self._people.revoke_key(name, caller.subject)
