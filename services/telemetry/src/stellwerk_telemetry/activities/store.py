"""The activity log in MongoDB: a projection that is filled again from the streams when it is dropped."""

import re
from collections.abc import Sequence

from pymongo import ASCENDING, DESCENDING, IndexModel

from stellwerk_platform import paging
from stellwerk_platform.documents import Document
from stellwerk_platform.mongo import Database
from stellwerk_protos.telemetry.v1 import activity_pb2 as pb
from stellwerk_telemetry.activities.domain import Query, position, to_proto
from stellwerk_telemetry.store import insert_missing

_COLLECTION = "activities"


class Activities:
    """Stored activities."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._raw = database.raw[_COLLECTION]

    async def open(self) -> bool:
        """Creates collection and indexes; False when nothing is stored yet, or no longer."""
        indexes = [
            # With the action, so that a text in it is looked for in the index alone.
            IndexModel([("workspace", 1), ("_id", DESCENDING), ("action", 1)], name="workspace"),
            *(
                IndexModel([("workspace", 1), (field, 1), ("_id", DESCENDING)], name=field)
                for field in ("actor", "lineage", "result")
            ),
            IndexModel([("expire_time", ASCENDING)], name="expire_time", expireAfterSeconds=0),
        ]
        await self._database.ensure(_COLLECTION, indexes, required=["workspace", "action", "time", "result"])
        return await self._raw.find_one({}, {"_id": 1}) is not None

    async def insert(self, documents: Sequence[Document]) -> None:
        """Stores activities; one that is there already stays as it is."""
        await insert_missing(self._raw, documents)

    async def page(self, query: Query, size: int, token: str) -> tuple[list[pb.Activity], str]:
        """One page, newest first. What comes meanwhile moves nothing on the pages that follow."""
        size = paging.page_size(size)
        before = paging.decode(token, query)
        found = await self._find(query, {"$lt": str(before)} if before else {}, DESCENDING, size + 1)
        more = len(found) > size
        return found[:size], paging.encode(found[size - 1].id, query) if more else ""

    async def after(self, query: Query, after: str, limit: int) -> list[pb.Activity]:
        """The next ones in order of time."""
        return await self._find(query, {"$gt": after}, ASCENDING, limit)

    async def _find(self, query: Query, bound: Document, order: int, limit: int) -> list[pb.Activity]:
        where: Document = {"workspace": query.workspace}
        where |= {key: value for key, value in (("actor", query.actor), ("result", query.result)) if value}
        if query.resource:
            where["lineage"] = query.resource
        if query.action:
            where["action"] = {"$regex": re.escape(query.action)}
        bounds = [
            {"_id": bound} if bound else {},
            {"_id": {"$gte": position(query.start)}} if query.start else {},
            {"_id": {"$lt": position(query.end)}} if query.end else {},
        ]
        where["$and"] = [one for one in bounds if one] or [{}]
        cursor = self._raw.find(where).sort("_id", order).limit(limit)
        return [to_proto(dict(document)) async for document in cursor]
