"""Large blobs: in parts to the real object store, taken up again, checked as a whole, fetched in ranges."""

import asyncio
import hashlib
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

# Files of tests are read without a thread: nothing else goes on.
# ruff: noqa: ASYNC240
import grpc
import httpx
import pytest
import pytest_asyncio

from services.registry.tests.support import PART_BYTES, WORKSPACE, Registry
from services.registry.tests.test_blobs import no_secrets
from stellwerk import blob_store
from stellwerk._async.core import AsyncCore
from stellwerk.blob_store import Meter
from stellwerk.settings import Settings
from stellwerk_launcher.testing import Servers
from stellwerk_platform.blobs import BlobStore
from stellwerk_platform.errors import FailedPrecondition, Unavailable, from_rpc
from stellwerk_platform.mongo import Database
from stellwerk_protos.registry.v1 import blobs_pb2 as pb
from stellwerk_registry.blobs.store import BlobIndex
from stellwerk_registry.datastores.places import Places
from stellwerk_registry.datastores.store import DatastoreStore
from stellwerk_registry.members.store import MemberStore
from stellwerk_registry.uploads.domain import part_size
from stellwerk_registry.uploads.store import Uploads
from stellwerk_registry.workspaces.domain import DEFAULT_DATASTORE
from stellwerk_registry.workspaces.store import WorkspaceStore

SIZE = 4 * PART_BYTES + 12_345


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A file of four parts and a bit."""
    path = tmp_path / "source" / "big.bin"
    path.parent.mkdir()
    path.write_bytes(os.urandom(SIZE))
    return path


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@asynccontextmanager
async def connected(registry: Registry) -> AsyncIterator[tuple[AsyncCore, list[httpx.Request]]]:
    """A client as a process has it, and what it asks the store for."""
    core = AsyncCore(Settings(registry.address, "", "demo", registry.secrets.owner_key, {}))
    requests: list[httpx.Request] = []

    async def note(request: httpx.Request) -> None:
        requests.append(request)

    core._http.event_hooks["request"].append(note)
    try:
        yield core, requests
    finally:
        await core.close()


async def offered(registry: Registry, sha256: str, size_bytes: int = SIZE) -> list[pb.Upload]:
    blob = pb.Blob(sha256=sha256, size_bytes=size_bytes)
    answer = await registry.blobs.PrepareUploads(pb.PrepareUploadsRequest(parent=WORKSPACE, blobs=[blob]))
    return list(answer.uploads)


async def put_part(registry: Registry, sha256: str, number: int, content: bytes) -> None:
    request = pb.PreparePartRequest(
        parent=WORKSPACE, sha256=sha256, number=number, part_sha256=digest_of(content)
    )
    part = await registry.blobs.PreparePart(request)
    async with httpx.AsyncClient() as http:
        (await http.put(part.url, content=content, headers=dict(part.headers))).raise_for_status()


async def refusal(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc(caught.value).reason


async def test_a_large_file_travels_in_parts_and_comes_back_in_ranges(
    registry: Registry, big: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blob_store, "RANGE_BYTES", PART_BYTES)
    async with connected(registry) as (core, requests):
        files = await core.upload(WORKSPACE, big)
        assert len(requests) == 5
        await core.upload(WORKSPACE, big)
        assert len(requests) == 5, "what is there does not travel again"
        requests.clear()
        await core.download(WORKSPACE, files, tmp_path / "target")
        assert len({request.headers["range"] for request in requests}) == 5
    assert (tmp_path / "target" / "big.bin").read_bytes() == big.read_bytes()
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["big.bin"]


async def test_an_upload_goes_on_where_a_process_died(registry: Registry, big: Path) -> None:
    content = big.read_bytes()
    sha256 = digest_of(content)
    (first,) = await offered(registry, sha256)
    assert (first.url, first.part_size_bytes, list(first.present_parts)) == ("", PART_BYTES, [])
    for number in (1, 3):
        await put_part(registry, sha256, number, content[(number - 1) * PART_BYTES : number * PART_BYTES])
    moved: list[int] = []
    async with connected(registry) as (core, requests):
        (offer,) = await offered(registry, sha256)
        assert list(offer.present_parts) == [1, 3]
        await blob_store.put(core._http, core._calls, WORKSPACE, big, SIZE, offer, Meter(moved.append))
        assert sorted(int(request.url.params["partNumber"]) for request in requests) == [2, 4, 5]
    assert sum(moved) == SIZE
    assert await offered(registry, sha256) == []


async def test_parts_that_do_not_make_the_blob_are_refused_and_dropped(registry: Registry, big: Path) -> None:
    content = big.read_bytes()
    sha256 = digest_of(content)
    complete = pb.CompleteUploadRequest(parent=WORKSPACE, sha256=sha256)
    await offered(registry, sha256)
    pieces = [content[at : at + PART_BYTES] for at in range(0, SIZE, PART_BYTES)]
    pieces[2] = os.urandom(PART_BYTES)
    for number, piece in enumerate(pieces[:4], 1):
        await put_part(registry, sha256, number, piece)
    assert await refusal(registry.blobs.CompleteUpload(complete)) == "PARTS_MISSING"
    await put_part(registry, sha256, 5, pieces[4])
    assert await refusal(registry.blobs.CompleteUpload(complete)) == "DIGEST_MISMATCH"
    assert await refusal(registry.blobs.CompleteUpload(complete)) == "UPLOAD_NOT_FOUND"
    downloads = pb.PrepareDownloadsRequest(parent=WORKSPACE, sha256=[sha256])
    assert await refusal(registry.blobs.PrepareDownloads(downloads)) == "BLOB_NOT_FOUND"
    async with connected(registry) as (core, _):
        await core.upload(WORKSPACE, big)
    assert (await registry.blobs.CompleteUpload(complete)).done


async def test_what_cannot_be_asked_for(registry: Registry) -> None:
    sha256 = digest_of(os.urandom(8))

    def part(number: int) -> Any:
        return registry.blobs.PreparePart(
            pb.PreparePartRequest(parent=WORKSPACE, sha256=sha256, number=number, part_sha256="0" * 64)
        )

    assert await refusal(part(1)) == "UPLOAD_NOT_FOUND"
    assert await refusal(offered(registry, sha256, 1 << 60)) == "BLOB_TOO_LARGE"
    await offered(registry, sha256)
    for number in (0, 6, -1):
        assert await refusal(part(number)) == "INVALID_PART"


def test_parts_are_few_enough_for_s3() -> None:
    mib = 1024 * 1024
    assert part_size(256 * mib, 64 * mib) == 0
    assert part_size(256 * mib + 1, 64 * mib) == 64 * mib
    size = 4 * 1024 * 1024 * mib
    assert size / part_size(size, 64 * mib) <= 10_000


async def test_a_download_goes_on_where_a_process_died(registry: Registry, big: Path, tmp_path: Path) -> None:
    target = tmp_path / "target" / "big.bin"
    async with connected(registry) as (core, requests):
        (file,) = await core.upload(WORKSPACE, big)
        request = pb.PrepareDownloadsRequest(parent=WORKSPACE, sha256=[file.sha256])
        url = (await registry.blobs.PrepareDownloads(request)).downloads[0].url

        async def url_of() -> str:
            return url

        async def get(meter: Meter) -> None:
            await blob_store.get_in_ranges(
                core._http, url_of, file.sha256, SIZE, target, meter, 0o644, PART_BYTES
            )

        arrived = 0

        def stop(moved: int) -> None:
            nonlocal arrived
            arrived += moved
            if arrived > 4 * PART_BYTES:
                task.cancel()

        task = asyncio.create_task(get(Meter(stop)))
        with pytest.raises(asyncio.CancelledError):
            await task
        (done,) = target.parent.glob(".*.ranges")
        there = len(done.read_text().splitlines())
        assert not target.exists()
        requests.clear()
        await get(Meter(lambda moved: None))
        assert len(requests) == 5 - there
    assert target.read_bytes() == big.read_bytes()
    assert list(target.parent.iterdir()) == [target]


@pytest_asyncio.fixture
async def parts(servers: Servers) -> AsyncIterator[tuple[Uploads, BlobStore, BlobIndex, Database]]:
    """What the service is made of, so that a test can stop between two steps."""
    namespace = f"t{uuid.uuid4().hex[:8]}"
    database = Database(servers.mongodb_uri, namespace, "registry")
    async with BlobStore.connect(
        servers.s3_url, servers.s3_access_key, servers.s3_secret_key, namespace
    ) as objects:
        datastores = DatastoreStore(database)
        workspaces = WorkspaceStore(database, datastores, MemberStore(database))
        places = Places(objects, workspaces, datastores, no_secrets)
        index = BlobIndex(database, places, [], grace_seconds=0.0)
        await index.open()
        yield Uploads(database, places, objects, PART_BYTES), objects, index, database
    await database.client.drop_database(database.raw.name)
    database.close()


async def begun(uploads: Uploads, index: BlobIndex, content: bytes, sha256: str = "") -> str:
    """An upload whose parts are all there, under their digest or that of another blob."""
    sha256 = sha256 or digest_of(content)
    await index.offer("demo", {sha256: len(content)}, DEFAULT_DATASTORE)
    assert await uploads.begin("demo", sha256, len(content)) is not None
    async with httpx.AsyncClient() as http:
        for number, at in enumerate(range(0, len(content), PART_BYTES), 1):
            piece = content[at : at + PART_BYTES]
            url, headers = await uploads.part_url("demo", sha256, number, digest_of(piece))
            (await http.put(url, content=piece, headers=headers)).raise_for_status()
    return sha256


async def finished_and_died(objects: BlobStore, database: Database, sha256: str) -> None:
    """As if the process had died after the store put the parts together, before it was noted."""
    document = await database.raw["blobs"].find_one_and_update(
        {"_id": f"demo/{sha256}"}, {"$set": {"upload.claimed": True}}
    )
    assert document is not None
    upload_id = document["upload"]["id"]
    whole = await objects.parts("demo", sha256, upload_id)
    assert whole
    assert await objects.finish_upload("demo", sha256, upload_id, whole)


async def test_whatever_dies_between_two_steps_another_process_goes_on(parts: Any) -> None:
    uploads, objects, index, database = parts
    content = os.urandom(SIZE)
    sha256 = await begun(uploads, index, content)
    await finished_and_died(objects, database, sha256)
    assert await objects.size("demo", sha256) == SIZE
    assert await index.missing("demo", [sha256]) == [sha256], "nobody has checked the whole"
    other = Uploads(database, uploads._places, objects, PART_BYTES)
    begun_again = await other.begin("demo", sha256, SIZE)
    assert begun_again is not None
    assert begun_again[1] == [1, 2, 3, 4, 5]
    assert (await other.complete("demo", sha256)).done
    assert await index.missing("demo", [sha256]) == []
    assert await other.begin("demo", sha256, SIZE) is None


async def test_uploads_that_were_given_up_are_dropped(parts: Any) -> None:
    uploads, objects, index, _ = parts
    sha256 = await begun(uploads, index, os.urandom(SIZE))
    orphan = await objects.begin_upload("demo", "0" * 64)
    await uploads.sweep(datetime.now(UTC) - timedelta(minutes=1))
    assert len([found async for found in objects.uploads()]) == 2
    await uploads.sweep(datetime.now(UTC) + timedelta(minutes=1))
    assert [found async for found in objects.uploads()] == []
    assert await objects.parts("demo", "0" * 64, orphan) is None
    with pytest.raises(FailedPrecondition):
        await uploads.complete("demo", sha256)
    assert await uploads.begin("demo", sha256, SIZE) is not None


async def test_what_a_sweep_could_not_finish_a_later_one_does(
    parts: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    uploads, objects, index, database = parts
    sha256 = await begun(uploads, index, os.urandom(SIZE))
    cutoff = datetime.now(UTC) + timedelta(minutes=1)
    caplog.set_level("INFO", "stellwerk_registry")

    async def hang(*_: str) -> None:
        await asyncio.Event().wait()

    with monkeypatch.context() as slow:
        slow.setattr(objects, "abort_upload", hang)
        slow.setattr("stellwerk_registry.uploads.store.REMOVAL_SECONDS", 0)
        await uploads.sweep(cutoff)
    assert "stays for now: 1 of the blobs are being removed" in caplog.text
    # The process that set the mark might still be at it.
    await uploads.sweep(cutoff)
    assert "was dropped" not in caplog.text
    assert len([found async for found in objects.uploads()]) == 1
    # As if longer ago than any removal takes, and than the URLs of the parts hold.
    long_ago = datetime.now(UTC) - timedelta(days=1)
    await database.raw["blobs"].update_one(
        {"_id": f"demo/{sha256}"}, {"$set": {"removing_time": long_ago, "offer_time": long_ago}}
    )
    await uploads.sweep(cutoff)
    assert "was dropped" in caplog.text
    assert [found async for found in objects.uploads()] == []
    assert await index.used_bytes("demo") == 0
    assert await uploads.begin("demo", sha256, SIZE) is not None


async def test_a_blob_that_is_given_up_takes_its_parts_along(parts: Any) -> None:
    uploads, objects, index, _ = parts
    sha256 = await begun(uploads, index, os.urandom(SIZE))
    await index.removals.release("demo", [sha256], validate_only=False)
    assert [found async for found in objects.uploads()] == []


class InOnePiece:
    """A small blob, and somebody who brings another content for its digest in parts."""

    def __init__(self, parts: Any) -> None:
        self.uploads, self.objects, self.index, self._database = parts
        self.content = os.urandom(1_000)
        self.sha256 = digest_of(self.content)

    async def put(self) -> None:
        await self.index.offer("demo", {self.sha256: len(self.content)}, DEFAULT_DATASTORE)
        url, headers = self.objects.upload_url("demo", self.sha256, len(self.content))
        async with httpx.AsyncClient() as http:
            (await http.put(url, content=self.content, headers=headers)).raise_for_status()

    async def parts(self) -> None:
        await begun(self.uploads, self.index, os.urandom(SIZE), self.sha256)

    async def missing(self) -> bool:
        return bool(await self.index.missing("demo", [self.sha256]))

    async def is_right(self) -> bool:
        return bool(await self.objects.content("demo", self.sha256, SIZE) == self.content)

    def meanwhile(self, monkeypatch: pytest.MonkeyPatch, act: Any) -> None:
        """Acts once after the object store was asked for the blob, before the answer is noted."""
        size, acts = self.objects.size, [act]

        async def ask(*arguments: str) -> int | None:
            found: int | None = await size(*arguments)
            while acts:
                await acts.pop()()
            return found

        monkeypatch.setattr(self.objects, "size", ask)


async def test_a_blob_that_is_there_in_one_piece_is_not_overwritten_by_parts(
    parts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = InOnePiece(parts)
    await blob.parts()
    await blob.put()
    assert not await blob.missing()
    assert (await blob.uploads.complete("demo", blob.sha256)).done
    assert await blob.is_right()
    assert [found async for found in blob.objects.uploads()] == []
    # The same when the parts come while the store is being asked.
    other = InOnePiece(parts)
    await other.put()
    other.meanwhile(monkeypatch, other.parts)
    assert not await other.missing()
    assert (await other.uploads.complete("demo", other.sha256)).done
    assert await other.is_right()


async def test_a_blob_that_parts_overwrite_is_missing(parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = InOnePiece(parts)
    await blob.parts()
    await blob.put()

    async def complete() -> None:
        with pytest.raises(FailedPrecondition, match="not"):
            await blob.uploads.complete("demo", blob.sha256)

    blob.meanwhile(monkeypatch, complete)
    assert await blob.missing()
    await blob.put()
    assert not await blob.missing()
    assert await blob.is_right()


async def test_a_whole_that_nobody_checked_stands_in_nobodys_way(parts: Any) -> None:
    uploads, objects, _, database = parts
    blob = InOnePiece(parts)
    await blob.parts()
    await finished_and_died(objects, database, blob.sha256)
    assert await blob.missing()
    with pytest.raises(Unavailable):
        await uploads.begin("demo", blob.sha256, SIZE + 1)
    await uploads.finish_claimed("demo", {blob.sha256: len(blob.content)})
    assert await objects.size("demo", blob.sha256) is None
    await blob.put()
    assert not await blob.missing()
