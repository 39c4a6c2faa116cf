"""Where the blobs of a workspace lie: the object store and prefix of each datastore."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from stellwerk_platform import names
from stellwerk_platform.blobs import BlobStore
from stellwerk_protos.registry.v1.datastores_pb2 import Datastore
from stellwerk_registry.datastores.store import DatastoreStore
from stellwerk_registry.workspaces.domain import DEFAULT_DATASTORE
from stellwerk_registry.workspaces.store import WorkspaceStore

_KEYS_SECONDS = 300.0
# Reads the newest value of a named secret.
ReadSecret = Callable[[str], Awaitable[str]]


@dataclass(frozen=True)
class Place:
    """A prefix in a bucket; `is_foreign` says that the server is a user's, which may be slow or worse."""

    store: BlobStore
    prefix: str
    is_foreign: bool = False

    async def size(self, sha256: str) -> int | None:
        """Bytes of a blob, None when it is missing; raises `Unavailable`."""
        return await self.store.size(self.prefix, sha256)

    async def delete(self, sha256: str) -> None:
        """Removes a blob; one that is missing is no error. Raises `Unavailable`."""
        await self.store.delete(self.prefix, sha256)

    def upload_url(self, sha256: str, size_bytes: int) -> tuple[str, dict[str, str]]:
        """A URL for one PUT of so many bytes and the headers that it must carry."""
        return self.store.upload_url(self.prefix, sha256, size_bytes)

    def download_url(self, sha256: str) -> str:
        """A URL for GETs."""
        return self.store.download_url(self.prefix, sha256)


class Slots:
    """How much goes on at a time at the platform's store, and apart from it at all foreign ones."""

    def __init__(self, count: int) -> None:
        self._own, self._foreign = asyncio.Semaphore(count), asyncio.Semaphore(count)

    def at(self, place: Place) -> asyncio.Semaphore:
        """Those for a place."""
        return self._foreign if place.is_foreign else self._own


@dataclass(frozen=True)
class _Connected:
    """A place, the keys that it was opened with, and until when they are believed."""

    place: Place
    keys: tuple[str, str] = field(repr=False)
    until: float


class Places:
    """The places of all datastores; connections to stores of users are made once and kept."""

    def __init__(
        self,
        platform: BlobStore,
        workspaces: WorkspaceStore,
        datastores: DatastoreStore,
        read_secret: ReadSecret,
    ) -> None:
        self._platform = platform
        self._workspaces = workspaces
        self._datastores = datastores
        self._read_secret = read_secret
        # By name and creation of the datastore.
        self._connected: dict[tuple[str, int], _Connected] = {}
        self._stack = AsyncExitStack()
        self._lock = asyncio.Lock()

    async def default(self, workspace: str) -> tuple[str, Place]:
        """Id and place of the datastore where new content goes."""
        found = await self._workspaces.get(f"workspaces/{workspace}")
        datastore_id = names.id_of(found.default_datastore) if found.default_datastore else DEFAULT_DATASTORE
        return datastore_id, await self.of(workspace, datastore_id)

    async def of(self, workspace: str, datastore_id: str) -> Place:
        """The place of one datastore; raises `NotFound`, and `Unavailable` when it does not answer."""
        if datastore_id == DEFAULT_DATASTORE:
            return Place(self._platform, workspace)
        datastore = await self._datastores.get(f"workspaces/{workspace}/datastores/{datastore_id}")
        key = datastore.name, datastore.create_time.ToMilliseconds()
        async with self._lock:
            connected = self._connected.get(key)
            # The keys are asked for again from time to time, so that they can be rotated.
            if connected is None or connected.until < time.monotonic():
                connected = await self._connect(datastore, connected)
                self._connected[key] = connected
            return connected.place

    async def _connect(self, datastore: Datastore, before: "_Connected | None") -> "_Connected":
        keys = await self._keys(datastore)
        if before is not None and before.keys == keys:
            place = before.place
        else:
            place = await self._stack.enter_async_context(self._opened(datastore, keys))
        return _Connected(place, keys, time.monotonic() + _KEYS_SECONDS)

    async def _keys(self, datastore: Datastore) -> tuple[str, str]:
        if not datastore.endpoint:
            return "", ""
        access_key = await self._read_secret(datastore.access_key_secret)
        return access_key, await self._read_secret(datastore.secret_key_secret)

    @asynccontextmanager
    async def _opened(self, datastore: Datastore, keys: tuple[str, str]) -> AsyncIterator[Place]:
        if not datastore.endpoint:
            yield Place(self._platform, datastore.prefix)
            return
        async with BlobStore.connect(datastore.endpoint, *keys, datastore.bucket, create=False) as store:
            yield Place(store, datastore.prefix, is_foreign=True)

    async def probe(self, datastore: Datastore) -> None:
        """Writes, reads and deletes a small object there; raises `PlatformError`."""
        async with self._opened(datastore, await self._keys(datastore)) as place:
            await place.store.probe(place.prefix)

    async def close(self) -> None:
        """Closes the connections."""
        await self._stack.aclose()
