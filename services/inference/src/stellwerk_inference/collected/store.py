"""The index in MongoDB: one document a file, which is written once and never changed.

Not in the journal: a file is data of an endpoint, and there may be one a minute and replica.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pymongo import ASCENDING, UpdateOne

from stellwerk_inference.collected.domain import Place
from stellwerk_platform import paging
from stellwerk_platform.documents import Document
from stellwerk_platform.mongo import Database
from stellwerk_platform.workspace_data import begins_with
from stellwerk_protos.common.v1.common_pb2 import File
from stellwerk_protos.inference.v1 import collections_pb2 as pb

COLLECTION = "collected_files"


class CollectedStore:
    """The one collection."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._files = database.raw[COLLECTION]

    async def open(self) -> None:
        """Creates the collection."""
        await self._database.ensure(COLLECTION, required=["path", "sha256", "hour"])

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


def _where(request: pb.ListCollectedFilesRequest, first: datetime | None, last: datetime | None) -> Document:
    # The path begins with the endpoint's id, then the deployment's.
    below = f"{request.parent}#{request.parent.rpartition('/')[2]}/"
    if request.deployment:
        below += f"{request.deployment}/"
    where = begins_with("_id", below)
    if request.collection:
        where["collection"] = request.collection
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
