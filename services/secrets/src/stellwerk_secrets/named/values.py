"""Values of named secrets in Vault's KV store, version 2: the only place that has them.

The path is `stellwerk/workspaces/<workspace>/secrets/<secret>`; a namespace that is not the default
one (tests share a Vault) stands before the workspace.
"""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import hvac.exceptions

from stellwerk_platform import names
from stellwerk_platform.errors import FailedPrecondition
from stellwerk_platform.vault import T, Vault
from stellwerk_secrets.limits import Gate

_MOUNT = "secret"
_DEFAULT_NAMESPACE = "stellwerk"
# So many of the newest ones are kept.
MAXIMUM_VERSIONS = 100
_FIELD = "value"


@dataclass(frozen=True)
class Version:
    """What Vault says of one version, less its value."""

    number: int
    create_time: datetime
    destroyed: bool


class Values:
    """Reads and writes values. All raise `Unavailable` while Vault does not answer."""

    def __init__(self, vault: Vault, namespace: str) -> None:
        self._vault = vault
        self._prefix = "" if namespace == _DEFAULT_NAMESPACE else f"{namespace}."
        self._gate = Gate(running=8, waiting=256)

    def path(self, secret: str) -> str:
        """Where a secret lies below the mount."""
        workspace = self._prefix + names.workspace_of(secret)
        return f"stellwerk/workspaces/{workspace}/secrets/{names.id_of(secret)}"

    async def put(self, secret: str, value: bytes, latest: int) -> int | None:
        """Writes the version after `latest`; None when that is not the latest one any more."""
        content = {_FIELD: base64.b64encode(value).decode()}

        def write(client: hvac.Client) -> int:
            kv = client.secrets.kv.v2
            if latest == 0:
                kv.update_metadata(path=self.path(secret), mount_point=_MOUNT, max_versions=MAXIMUM_VERSIONS)
            answer = kv.create_or_update_secret(
                path=self.path(secret), secret=content, cas=latest, mount_point=_MOUNT
            )
            return int(answer["data"]["version"])

        try:
            return await self._call(write)
        except hvac.exceptions.InvalidRequest as error:
            if "check-and-set" in str(error):
                return None
            raise

    async def get(self, secret: str, version: int) -> tuple[int, bytes] | None:
        """Number and value of a version (0: the latest one); None when there is none."""

        def read(client: hvac.Client) -> tuple[int, bytes]:
            answer = client.secrets.kv.v2.read_secret_version(
                path=self.path(secret),
                version=version or None,
                mount_point=_MOUNT,
                raise_on_deleted_version=True,
            )
            data = answer["data"]
            return int(data["metadata"]["version"]), base64.b64decode(data["data"][_FIELD])

        try:
            return await self._call(read)
        except hvac.exceptions.InvalidPath:
            return None

    async def versions(self, secret: str) -> list[Version]:
        """All versions that Vault knows of, newest first; none when there is no such secret."""

        def read(client: hvac.Client) -> dict[str, Any]:
            answer = client.secrets.kv.v2.read_secret_metadata(path=self.path(secret), mount_point=_MOUNT)
            found: dict[str, Any] = answer["data"]["versions"]
            return found

        try:
            found = await self._call(read)
        except hvac.exceptions.InvalidPath:
            return []
        versions = [
            Version(int(number), datetime.fromisoformat(item["created_time"]), bool(item["destroyed"]))
            for number, item in found.items()
        ]
        return sorted(versions, key=lambda version: version.number, reverse=True)

    async def latest(self, secret: str) -> int:
        """The newest version, 0 without any."""
        return max((version.number for version in await self.versions(secret)), default=0)

    async def names(self, workspace: str) -> list[str]:
        """Ids of all secrets of `workspaces/demo` of which Vault has a version, also a deleted one."""
        folder = self.path(f"{workspace}/secrets/any").rpartition("/")[0]

        def read(client: hvac.Client) -> list[str]:
            answer = client.secrets.kv.v2.list_secrets(path=folder, mount_point=_MOUNT)
            return [str(key) for key in answer["data"]["keys"]]

        try:
            return await self._call(read)
        except hvac.exceptions.InvalidPath:
            return []

    async def purge(self, secret: str) -> None:
        """Removes all versions; again, nothing happens."""

        def remove(client: hvac.Client) -> None:
            client.secrets.kv.v2.delete_metadata_and_all_versions(path=self.path(secret), mount_point=_MOUNT)

        await self._call(remove)

    async def _call(self, work: Callable[[hvac.Client], T]) -> T:
        async with self._gate():
            try:
                return await self._vault.call(work)
            except hvac.exceptions.Forbidden as error:
                raise FailedPrecondition(
                    "SECRETS_MOUNT_REFUSED",
                    "Vault does not let the service keep secrets.",
                    "Mount KV version 2 at secret/ and let the AppRole of secrets use "
                    "secret/data/stellwerk/workspaces/* and secret/metadata/stellwerk/workspaces/*.",
                ) from error
