"""Named secrets of a workspace."""

from collections.abc import Sequence

from stellwerk import names
from stellwerk._async.core import AsyncCore
from stellwerk_protos.secrets.v1 import secrets_pb2, secrets_pb2_grpc


class AsyncSecrets:
    """The named secrets of a workspace: values lie in Vault, everything else is no secret."""

    def __init__(self, core: AsyncCore, parent: str) -> None:
        self._core, self._parent = core, parent
        self._stub = secrets_pb2_grpc.SecretServiceStub(core.channel)

    async def set(
        self, name: str, value: str | bytes, *, expected_version: int | None = None
    ) -> secrets_pb2.Secret:
        """Writes a new version of up to 64 KiB.

        With `expected_version` only while that is the latest one (0: while there is none); else raises
        `StellwerkError` with reason SECRET_VERSION_CHANGED.
        """
        content = value.encode() if isinstance(value, str) else value
        request = secrets_pb2.SetSecretRequest(name=self._name(name), value=content)
        if expected_version is not None:
            request.expected_version = expected_version
        return await self._core.call(self._stub.SetSecret, request)

    async def get(self, name: str, *, version: int | None = None) -> str:
        """The value as text: of the latest version, unless one is named."""
        return (await self.get_bytes(name, version=version)).decode()

    async def get_bytes(self, name: str, *, version: int | None = None) -> bytes:
        """The value as it was set."""
        wanted = self._name(name) + (f"/versions/{version}" if version is not None else "")
        request = secrets_pb2.AccessSecretRequest(name=wanted)
        return (await self._core.call(self._stub.AccessSecret, request)).value

    async def describe(self, name: str) -> secrets_pb2.Secret:
        """What is known of a secret, less its value."""
        request = secrets_pb2.GetSecretRequest(name=self._name(name))
        return await self._core.call(self._stub.GetSecret, request)

    async def list(
        self, *, include_deleted: bool = False, limit: int | None = None
    ) -> Sequence[secrets_pb2.Secret]:
        """The secrets by name, less their values."""
        request = secrets_pb2.ListSecretsRequest(parent=self._parent, show_deleted=include_deleted)
        pages = await self._core.pages(self._stub.ListSecrets, request, limit)
        return [secret for page in pages for secret in page.secrets]

    async def versions(self, name: str, *, limit: int | None = None) -> Sequence[secrets_pb2.SecretVersion]:
        """The versions, newest first; the newest 100 are kept."""
        request = secrets_pb2.ListSecretVersionsRequest(parent=self._name(name))
        pages = await self._core.pages(self._stub.ListSecretVersions, request, limit)
        return [version for page in pages for version in page.versions]

    async def delete(self, name: str, *, purge: bool = False) -> secrets_pb2.Secret:
        """Deletes a secret so that it can be undeleted; with `purge` all versions are gone for good."""
        request = secrets_pb2.DeleteSecretRequest(name=self._name(name), purge=purge)
        return await self._core.call(self._stub.DeleteSecret, request)

    async def undelete(self, name: str) -> secrets_pb2.Secret:
        """Brings a deleted secret back with all its versions."""
        request = secrets_pb2.UndeleteSecretRequest(name=self._name(name))
        return await self._core.call(self._stub.UndeleteSecret, request)

    def _name(self, name: str) -> str:
        return names.resource(self._parent, "secrets", name)
