"""The index in MongoDB: one document a file, which is written once, never changed, and may be removed.

Not in the journal: a file is data of an endpoint, and there may be one a minute and replica. A removal
leaves the digests of its files in `blob_releases` until their blobs are given up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pymongo import ASCENDING, IndexModel, UpdateOne

from stellwerk_inference.collected.domain import Place
from stellwerk_platform import names, paging
from stellwerk_platform.content import check_sha256
from stellwerk_platform.documents import Document
from stellwerk_platform.mongo import Database, Transaction
from stellwerk_platform.workspace_data import begins_with
from stellwerk_protos.common.v1.common_pb2 import File
from stellwerk_protos.inference.v1 import collections_pb2 as pb

COLLECTION = "collected_files"
_RELEASES = "blob_releases"
_BATCH = 1_000


@dataclass(frozen=True)
class Chosen:
    """Files of an endpoint, of hours that begin at `last` or before it; no deployment or collection: all."""

    endpoint: str
    deployment: str
    collection: str
    last: datetime

    def where(self) -> Document:
        """The filter."""
        return {**_below(self.endpoint, self.deployment, self.collection), "hour": {"$lte": self.last}}


class CollectedStore:
    """The one collection."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._files = database.raw[COLLECTION]
        self._releases = database.raw[_RELEASES]

    async def open(self) -> None:
        """Creates the collections."""
        digests = IndexModel([("sha256", ASCENDING)])
        await self._database.ensure(COLLECTION, [digests], ["path", "sha256", "hour"])
        await self._database.ensure(_RELEASES, [IndexModel([("due_time", ASCENDING)])], ["due_time"])

    async def record(self, endpoint: str, files: Sequence[pb.CollectedFile], places: Sequence[Place]) -> None:
        """Adds files; those that are there already stay as they are."""
        now = datetime.now(UTC)
        self._database.check_open(endpoint)
        await self._files.bulk_write(
            [
                UpdateOne(
                    {"_id": _key(endpoint, item.file.path)},
                    {"$setOnInsert": _document(item, place, now)},
                    upsert=True,
                )
                for item, place in zip(files, places, strict=True)
            ],
            ordered=False,
        )

    async def page(
        self,
        request: pb.ListCollectedFilesRequest,
        first: datetime | None,
        last: datetime | None,
    ) -> tuple[list[pb.CollectedFile], str]:
        """One page, by path, and the token of the next one."""
        query = (COLLECTION, request.parent, request.deployment, request.collection, str(first), str(last))
        size = paging.page_size(request.page_size)
        after = paging.decode(request.page_token, *query)
        where = _where(request, first, last)
        if after is not None:
            where = {"$and": [where, {"_id": {"$gt": _key(request.parent, after)}}]}
        found = await self._files.find(where).sort("_id", ASCENDING).limit(size + 1).to_list(size + 1)
        token = paging.encode(found[size - 1]["path"], *query) if len(found) > size else ""
        return [_file(document) for document in found[:size]], token

    async def count(self, chosen: Chosen) -> pb.DeleteCollectedDataResponse:
        """What would be removed."""
        sums = {name: {"$sum": f"${name}"} for name in ("event_count", "size_bytes")}
        pipeline: list[Document] = [
            {"$match": chosen.where()},
            {"$group": {"_id": None, "file_count": {"$sum": 1}, **sums}},
            {"$unset": "_id"},
        ]
        found = await self._files.aggregate(pipeline).to_list(1)
        return pb.DeleteCollectedDataResponse(**(found[0] if found else {}))

    async def delete_some_in(self, tx: Transaction, chosen: Chosen) -> pb.DeleteCollectedDataResponse:
        """Removes up to a thousand entries, and remembers their blobs to be released."""
        shown = {"sha256": 1, "event_count": 1, "size_bytes": 1}
        cursor = self._files.find(chosen.where(), shown, session=tx.session).limit(_BATCH + 1)
        found = await cursor.to_list(_BATCH + 1)
        some = found[:_BATCH]
        if some:
            digests = [document["sha256"] for document in some]
            await self.let_go_in(tx, names.parent_of(chosen.endpoint), digests)
            ids = [document["_id"] for document in some]
            await self._files.delete_many({"_id": {"$in": ids}}, session=tx.session)
        return pb.DeleteCollectedDataResponse(
            file_count=len(some),
            event_count=sum(document["event_count"] for document in some),
            size_bytes=sum(document["size_bytes"] for document in some),
            more=len(found) > _BATCH,
        )

    async def let_go_in(self, tx: Transaction, workspace: str, digests: Sequence[str]) -> None:
        """Has blobs released that nothing here needs any more; what else uses one keeps it.

        Raises `InvalidArgument` for what is no digest: it would hold up those that are released with it.
        """
        for digest in digests:
            check_sha256(digest)
        now = datetime.now(UTC)
        for start in range(0, len(digests), _BATCH):
            due = dict.fromkeys(digests[start : start + _BATCH], now)
            await self._releases.bulk_write(_due(workspace, due), ordered=False, session=tx.session)

    async def due_blobs(self) -> tuple[str, list[str]]:
        """A workspace, and up to a thousand digests of it to be released now."""
        first = await self._releases.find_one({"due_time": {"$lte": datetime.now(UTC)}})
        if first is None:
            return "", []
        workspace = first["_id"].partition("/blobs/")[0]
        where = {"due_time": {"$lte": datetime.now(UTC)}, **begins_with("_id", f"{workspace}/blobs/")}
        found = await self._releases.find(where, {"_id": 1}).limit(_BATCH).to_list(_BATCH)
        return workspace, [document["_id"].partition("/blobs/")[2] for document in found]

    async def referenced(self, workspace: str, digests: Sequence[str]) -> set[str]:
        """Those of the digests that files which are still there have."""
        where = {"sha256": {"$in": list(digests)}, **begins_with("_id", f"{workspace}/")}
        return {document["sha256"] async for document in self._files.find(where, {"sha256": 1})}

    async def settle_blobs(
        self, workspace: str, digests: Sequence[str], later: Mapping[str, datetime]
    ) -> None:
        """Forgets what is settled; the others, and packs that held them, come again at their time."""
        gone = [f"{workspace}/blobs/{digest}" for digest in digests if digest not in later]
        await self._releases.delete_many({"_id": {"$in": gone}})
        if later:
            await self._releases.bulk_write(_due(workspace, later), ordered=False)


def _due(workspace: str, times: Mapping[str, datetime]) -> list[UpdateOne]:
    return [
        UpdateOne({"_id": f"{workspace}/blobs/{digest}"}, {"$set": {"due_time": moment}}, upsert=True)
        for digest, moment in times.items()
    ]


def _below(endpoint: str, deployment: str, collection: str) -> Document:
    # The path begins with the endpoint's id, then the deployment's.
    below = f"{endpoint}#{endpoint.rpartition('/')[2]}/"
    if deployment:
        below += f"{deployment}/"
    where = begins_with("_id", below)
    if collection:
        where["collection"] = collection
    return where


def _where(request: pb.ListCollectedFilesRequest, first: datetime | None, last: datetime | None) -> Document:
    where = _below(request.parent, request.deployment, request.collection)
    hour: Document = {}
    if first is not None:
        hour["$gt"] = first
    if last is not None:
        hour["$lt"] = last
    return {**where, "hour": hour} if hour else where


def _key(endpoint: str, path: str) -> str:
    return f"{endpoint}#{path}"


def _document(item: pb.CollectedFile, place: Place, now: datetime) -> Document:
    return {
        "path": item.file.path,
        "sha256": item.file.sha256,
        "size_bytes": item.file.size_bytes,
        "event_count": item.event_count,
        "dropped_count": item.dropped_count,
        "collection": place.collection,
        "hour": place.hour,
        "record_time": now,
    }


def _file(document: Mapping[str, Any]) -> pb.CollectedFile:
    found = pb.CollectedFile(
        file=File(path=document["path"], sha256=document["sha256"], size_bytes=document["size_bytes"]),
        event_count=document["event_count"],
        dropped_count=document["dropped_count"],
    )
    found.record_time.FromDatetime(document["record_time"])
    return found
