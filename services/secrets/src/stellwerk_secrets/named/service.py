"""SecretService: parse, Vault, record, reply.

Vault is written first and is the truth about versions. A process that dies between the two writes leaves
a version that MongoDB does not know of; the next call that meets the secret records it.
"""

from typing import Any

from stellwerk_platform import activity, names, paging
from stellwerk_platform.auth import current_caller
from stellwerk_protos.secrets.v1 import secrets_pb2 as pb
from stellwerk_protos.secrets.v1 import secrets_pb2_grpc
from stellwerk_secrets.named import domain
from stellwerk_secrets.named.store import SecretStore
from stellwerk_secrets.named.values import Values

_ACCESS = "stellwerk.secrets.v1.SecretService/AccessSecret"
# Who records a version whose writer died before it could.
_FOUND_BY = "services/secrets"


class SecretService(secrets_pb2_grpc.SecretServiceServicer):
    """secrets.proto."""

    def __init__(self, store: SecretStore, values: Values) -> None:
        self._store = store
        self._values = values

    async def SetSecret(self, request: pb.SetSecretRequest, context: Any) -> pb.Secret:
        domain.check(request)
        actor = current_caller().subject
        known = await self._store.find(request.name)
        if known is not None:
            domain.check_alive(known)
        while True:
            latest = await self._recorded(request.name)
            domain.check_expected(request, latest)
            version = await self._values.put(request.name, request.value, latest)
            if version is not None:
                return await self._store.known(request.name, version, actor)

    async def GetSecret(self, request: pb.GetSecretRequest, context: Any) -> pb.Secret:
        names.parse(domain.PATTERN, request.name)
        await self._recorded(request.name)
        found = await self._store.find(request.name)
        if found is None:
            raise domain.missing(request.name)
        return found

    async def ListSecrets(self, request: pb.ListSecretsRequest, context: Any) -> pb.ListSecretsResponse:
        names.parse("workspaces/*", request.parent)
        prefix = f"{request.parent}/secrets"
        where: dict[str, Any] = {"_id": {"$gt": f"{prefix}/", "$lt": f"{prefix}0"}}
        if not request.show_deleted:
            where["delete_time"] = {"$exists": False}
        found, token = await self._store.page(where, request.page_size, request.page_token)
        return pb.ListSecretsResponse(secrets=found, next_page_token=token)

    async def ListSecretVersions(
        self, request: pb.ListSecretVersionsRequest, context: Any
    ) -> pb.ListSecretVersionsResponse:
        names.parse(domain.PATTERN, request.parent)
        secret = await self.GetSecret(pb.GetSecretRequest(name=request.parent), context)
        position = paging.decode(request.page_token, secret.name)
        size = paging.page_size(request.page_size)
        before = position[0] if position is not None else secret.version + 1
        found = [v for v in await self._values.versions(secret.name) if v.number < before]
        answer = pb.ListSecretVersionsResponse()
        for version in found[:size]:
            item = answer.versions.add(name=f"{secret.name}/versions/{version.number}")
            item.create_time.FromDatetime(version.create_time)
            item.destroyed = version.destroyed
        if len(found) > size:
            answer.next_page_token = paging.encode([found[size - 1].number], secret.name)
        return answer

    async def AccessSecret(self, request: pb.AccessSecretRequest, context: Any) -> pb.SecretValue:
        name, version = domain.split(request.name)
        caller = current_caller()
        if caller.role == "Workload":
            version = domain.pinned(caller, name, version)
        secret = await self._store.find(name)
        if secret is not None:
            domain.check_alive(secret)
        found = await self._values.get(name, 0 if version == domain.LATEST else int(version))
        if found is None:
            raise domain.missing(request.name)
        number, value = found
        if secret is None or number > secret.version:
            await self._recorded(name)
        activity.accessed(
            _ACCESS, actor=caller.subject, resource=f"{name}/versions/{number}", address=caller.address
        )
        return pb.SecretValue(name=f"{name}/versions/{number}", value=value)

    async def DeleteSecret(self, request: pb.DeleteSecretRequest, context: Any) -> pb.Secret:
        names.parse(domain.PATTERN, request.name)
        actor = current_caller().subject
        await self._recorded(request.name)
        if await self._store.find(request.name) is None:
            raise domain.missing(request.name)
        secret = await self._store.update(request.name, lambda found: domain.delete(found, actor))
        if request.purge:
            # Hidden by now: a process that dies here leaves nothing that can be read.
            await self._values.purge(request.name)
            await self._store.remove(request.name, actor)
        return secret

    async def UndeleteSecret(self, request: pb.UndeleteSecretRequest, context: Any) -> pb.Secret:
        names.parse(domain.PATTERN, request.name)
        if await self._store.find(request.name) is None:
            raise domain.missing(request.name)
        actor = current_caller().subject
        return await self._store.update(request.name, lambda found: domain.undelete(found, actor))

    async def _recorded(self, name: str) -> int:
        """The latest version in Vault, once MongoDB knows of it too."""
        latest = await self._values.latest(name)
        if latest:
            await self._store.known(name, latest, _FOUND_BY)
        return latest

    async def granted(self, owner: str, secrets: list[str]) -> list[str]:
        """The versions that a token of `owner` may read; what does not exist (any more) is left out."""
        found = []
        for name in domain.check_of_run(owner, secrets):
            secret = await self._store.find(name)
            latest = await self._values.latest(name)
            if latest and (secret is None or not secret.HasField("delete_time")):
                found.append(f"{name}/versions/{latest}")
        return found
