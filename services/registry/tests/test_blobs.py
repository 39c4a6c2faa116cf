"""Which blobs stay and which go, in front of the real object store, whoever comes in between."""

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import httpx
import pytest
import pytest_asyncio

from stellwerk_launcher.testing import Servers
from stellwerk_platform.blobs import BlobStore
from stellwerk_platform.mongo import Database
from stellwerk_protos.registry.v1.datasets_pb2 import DatasetVersion
from stellwerk_registry.blobs.store import BlobIndex
from stellwerk_registry.datastores.places import Place, Places
from stellwerk_registry.datastores.store import DatastoreStore
from stellwerk_registry.members.store import MemberStore
from stellwerk_registry.versions.store import VersionStore
from stellwerk_registry.workspaces.domain import DEFAULT_DATASTORE
from stellwerk_registry.workspaces.store import WorkspaceStore

WORKSPACE = "demo"
# Longer than any test takes.
GRACE_SECONDS = 3_600.0


class Versions(VersionStore[DatasetVersion]):
    """Stands for datasets and models: what refers to blobs, and a moment in which a test can act."""

    def __init__(self, database: Database) -> None:
        super().__init__(database, "datasets", DatasetVersion)
        self.names: set[str] = set()
        self.asked, self.go_on = asyncio.Event(), asyncio.Event()
        self.go_on.set()

    async def referred(self, workspace: str, digests: Sequence[str]) -> set[str]:
        """Those that the test names."""
        found = self.names & set(digests)
        self.asked.set()
        await self.go_on.wait()
        return found


@dataclass
class Blobs:
    """The index, its object store, and uploads as clients do them."""

    index: BlobIndex
    places: Places
    objects: BlobStore
    versions: Versions
    client: httpx.AsyncClient = field(default_factory=lambda: httpx.AsyncClient(trust_env=False))

    async def put(self, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        for missing in await self.index.missing(WORKSPACE, [digest]):
            await self.index.offer(WORKSPACE, {missing: 1}, DEFAULT_DATASTORE)
            url, headers = self.objects.upload_url(WORKSPACE, missing, len(content))
            (await self.client.put(url, content=content, headers=headers)).raise_for_status()
        return digest

    async def release(self, *digests: str, validate_only: bool = False) -> tuple[int, list[str]]:
        sizes, later = await self.index.removals.release(WORKSPACE, digests, validate_only=validate_only)
        return sum(sizes.values()), later


async def no_secrets(name: str) -> str:
    raise AssertionError(f"{name} is asked for")


@pytest_asyncio.fixture
async def blobs(servers: Servers) -> AsyncIterator[Blobs]:
    namespace = f"t{uuid.uuid4().hex[:8]}"
    database = Database(servers.mongodb_uri, namespace, "registry")
    versions = Versions(database)
    s3 = (servers.s3_url, servers.s3_access_key, servers.s3_secret_key, namespace)
    async with BlobStore.connect(*s3) as objects:
        datastores = DatastoreStore(database)
        places = Places(
            objects, WorkspaceStore(database, datastores, MemberStore(database)), datastores, no_secrets
        )
        index = BlobIndex(database, places, [versions], grace_seconds=GRACE_SECONDS)
        await index.open()
        found = Blobs(index, places, objects, versions)
        yield found
        await found.client.aclose()
    await database.client.drop_database(database.raw.name)
    database.close()


async def aged(blobs: Blobs) -> None:
    """As if the grace time had passed."""
    earlier = {"startDate": "$seen_time", "unit": "second", "amount": 2 * int(GRACE_SECONDS)}
    await blobs.index._blobs.update_many({}, [{"$set": {"seen_time": {"$dateSubtract": earlier}}}])


async def test_only_old_blobs_that_nothing_names_go(blobs: Blobs) -> None:
    old, named = await blobs.put(b"old"), await blobs.put(b"named")
    assert await blobs.index.missing(WORKSPACE, [old, named]) == []
    assert await blobs.release(old, "0" * 64) == (3, [old])
    await aged(blobs)
    blobs.versions.names = {named}
    assert await blobs.release(old, named, validate_only=True) == (3, [])
    assert await blobs.release(old, named) == (3, [])
    assert await blobs.index.missing(WORKSPACE, [old, named]) == [old]
    assert await blobs.objects.size(WORKSPACE, old) is None
    assert await blobs.put(b"old") == old
    assert await blobs.index.missing(WORKSPACE, [old]) == []


async def test_being_asked_for_keeps_a_blob(blobs: Blobs) -> None:
    digest = await blobs.put(b"used again")
    await aged(blobs)
    assert await blobs.index.missing(WORKSPACE, [digest]) == []
    assert await blobs.release(digest) == (10, [digest])
    assert await blobs.objects.size(WORKSPACE, digest) == 10


async def test_whoever_asks_during_a_removal_waits_and_uploads_again(blobs: Blobs) -> None:
    digest = await blobs.put(b"going")
    assert await blobs.index.missing(WORKSPACE, [digest]) == []
    await aged(blobs)
    blobs.versions.asked.clear()
    removal = asyncio.create_task(blobs.release(digest))
    await blobs.versions.asked.wait()
    blobs.versions.asked.clear()
    blobs.versions.go_on.clear()
    await blobs.versions.asked.wait()
    # The mark is set, the object is still there.
    upload = asyncio.create_task(blobs.put(b"going"))
    done, _ = await asyncio.wait({upload}, timeout=0.3)
    assert not done
    blobs.versions.go_on.set()
    await asyncio.gather(removal, upload)
    assert await blobs.objects.size(WORKSPACE, digest) == 5
    assert await blobs.index.missing(WORKSPACE, [digest]) == []


async def test_a_store_of_a_users_own_that_hangs_holds_up_nobody_else(
    blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    places, digests = blobs.places, [f"{number:064x}" for number in range(100)]
    async with BlobStore.connect(url, "key", "secret", "bucket", create=False) as store:
        of = places.of

        async def one_hangs(workspace: str, datastore: str) -> Place:
            return (
                Place(store, "p", is_foreign=True) if datastore == "own" else await of(workspace, datastore)
            )

        monkeypatch.setattr(places, "of", one_hangs)
        await blobs.index.offer(WORKSPACE, dict.fromkeys(digests, 1), "own")
        waiting = asyncio.create_task(blobs.index.missing(WORKSPACE, digests))
        await asked.wait()
        async with asyncio.timeout(60):
            assert await blobs.index.missing(WORKSPACE, [await blobs.put(b"here")]) == []
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    server.close()
