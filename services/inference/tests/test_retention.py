"""Collected data goes when it is asked to, or is too old, and takes no blob along that is still used."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest

from services.inference.tests.support import Inference, Journal
from stellwerk_inference.collected.domain import Place
from stellwerk_inference.collected.store import CollectedStore
from stellwerk_platform.errors import InvalidArgument
from stellwerk_platform.mongo import Database
from stellwerk_protos.common.v1.common_pb2 import File
from stellwerk_protos.inference.v1 import collections_pb2 as pb
from stellwerk_protos.runs.v1 import retention_pb2


class Collected:
    """Files of an endpoint as nodes would have brought them, in the real index."""

    def __init__(self, store: CollectedStore, inference: Inference, endpoint: str) -> None:
        self._store, self._stub, self.endpoint = store, inference.collections, endpoint

    async def add(self, days: int, digest: str, collection: str = "request") -> str:
        """A file with ten events of an hour so many days ago; returns its path."""
        hour = (datetime.now(UTC) - timedelta(days=days)).replace(minute=0, second=0, microsecond=0)
        endpoint = self.endpoint.rpartition("/")[2]
        path = f"{endpoint}/blue/{collection}/{hour:%Y/%m/%d/%H}/r1-{digest}.jsonl"
        file = File(path=path, sha256=digest * 64, size_bytes=100)
        item = pb.CollectedFile(file=file, event_count=10)
        await self._store.record(self.endpoint, [item], [Place("blue", collection, hour)])
        return path

    async def let_go(self, workspace: str, digest: str) -> None:
        """A blob of another workspace that has been due for long."""
        due = {"_id": f"{workspace}/blobs/{digest * 64}", "due_time": datetime(2026, 1, 1, tzinfo=UTC)}
        await self._store._releases.insert_one(due)

    async def let_all_go(self, digests: list[str]) -> None:
        """Blobs of this workspace, as what else holds some gives them up."""
        workspace = self.endpoint.partition("/endpoints/")[0]
        await self._store._database.commit(lambda tx: self._store.let_go_in(tx, workspace, digests))

    async def paths(self) -> list[str]:
        found = await self._stub.ListCollectedFiles(pb.ListCollectedFilesRequest(parent=self.endpoint))
        return [item.file.path for item in found.files]

    async def delete(
        self, *, days: int, dry_run: bool, collection: str = ""
    ) -> pb.DeleteCollectedDataResponse:
        request = pb.DeleteCollectedDataRequest(
            parent=self.endpoint, collection=collection, validate_only=dry_run
        )
        request.end_time.FromDatetime(datetime.now(UTC) - timedelta(days=days))
        answer: pb.DeleteCollectedDataResponse = await self._stub.DeleteCollectedData(request)
        return answer

    async def keep(self, days: int) -> int:
        request = pb.SetDataRetentionRequest(name=self.endpoint, days=days)
        return int((await self._stub.SetDataRetention(request)).data_retention_days)


async def released(inference: Inference, *digests: str) -> set[str]:
    """Returns once the blobs were released, with all that were meanwhile: more than once, perhaps."""
    found: set[str] = set()
    async with asyncio.timeout(60):
        while not found >= set(digests):
            found.add((await inference.others.released.get())[0])
    while not inference.others.released.empty():
        found.add(inference.others.released.get_nowait()[0])
    return found


@pytest.fixture
async def collected(inference: Inference, request: pytest.FixtureRequest) -> AsyncIterator[Collected]:
    endpoint = (await inference.create_endpoint(request.function.__name__.replace("_", "-")[:40])).name
    servers = inference.secrets.servers
    database = Database(servers.mongodb_uri, inference.bus.names.namespace, "inference")
    yield Collected(CollectedStore(database), inference, endpoint)
    database.close()


async def test_what_is_asked_for_goes_after_it_was_counted(
    inference: Inference, journal: Journal, collected: Collected
) -> None:
    old, other = await collected.add(30, "1"), await collected.add(30, "2", "response")
    young = await collected.add(1, "3")
    counted = await collected.delete(days=7, dry_run=True)
    assert (counted.file_count, counted.event_count, counted.size_bytes) == (2, 20, 200)
    assert await collected.paths() == sorted([old, other, young])
    removed = await collected.delete(days=7, dry_run=False, collection="request")
    assert (removed.file_count, removed.event_count, removed.more) == (1, 10, False)
    assert await collected.paths() == sorted([other, young])
    event = await journal.next("endpoint.data_deleted")
    assert event["data"]["reason"]["code"] == "REQUESTED"
    assert "1 files of collected data with 10 events" in event["data"]["reason"]["message"]
    await released(inference, "1")


async def test_what_is_too_old_goes_by_itself(inference: Inference, collected: Collected) -> None:
    await collected.add(30, "4")
    young = await collected.add(1, "5")
    assert await collected.keep(7) == 7
    await released(inference, "4")
    assert await collected.paths() == [young]
    assert await collected.keep(0) == 0


async def test_a_blob_stays_while_something_uses_it(inference: Inference, collected: Collected) -> None:
    # One that a younger file has too, one of a run, one that was asked for lately, and one for nobody.
    inference.others.referenced, inference.others.fresh = {"7" * 64}, {"8" * 64}
    for digest in "6789":
        await collected.add(30, digest)
    await collected.add(1, "6", "response")
    await collected.delete(days=7, dry_run=False)
    assert (await released(inference, "8", "9")).isdisjoint("67")


async def test_a_workspace_whose_blobs_cannot_go_holds_up_no_other(
    inference: Inference, collected: Collected
) -> None:
    def answer(request: Any) -> Any:
        if request.parent == "workspaces/broken":
            raise RuntimeError("this answer is lost")
        return retention_pb2.ListReferencedBlobsResponse()

    inference.others.answers[retention_pb2.ListReferencedBlobsRequest] = answer
    await collected.let_go("workspaces/broken", "a")
    await collected.add(30, "b")
    await collected.delete(days=7, dry_run=False)
    assert "a" not in await released(inference, "b")
    del inference.others.answers[retention_pb2.ListReferencedBlobsRequest]
    await released(inference, "a")


async def test_what_is_no_digest_is_not_let_go(collected: Collected) -> None:
    for wrong in ("x", "a/b", f"../blobs/{'c' * 64}"):
        with pytest.raises(InvalidArgument, match="is no SHA-256"):
            await collected.let_all_go(["c" * 64, wrong])


async def test_what_cannot_be_is_refused(inference: Inference, collected: Collected) -> None:
    endless, late, early = (pb.DeleteCollectedDataRequest(parent=collected.endpoint) for _ in range(3))
    late.end_time.seconds, early.end_time.seconds = 2**62, -62_135_596_800
    listed = pb.ListCollectedFilesRequest(parent=collected.endpoint, start_time=early.end_time)
    for call in (
        collected.keep(-1),
        collected.keep(36_501),
        *(inference.collections.DeleteCollectedData(request) for request in (endless, late, early)),
        inference.collections.ListCollectedFiles(listed),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
