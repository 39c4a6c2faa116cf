"""Spans in MongoDB; a time-to-live index removes them."""

import logging

from pymongo import ASCENDING, IndexModel
from pymongo.errors import BulkWriteError

from stellwerk_platform.documents import Document
from stellwerk_platform.mongo import Database

log = logging.getLogger(__name__)
_COLLECTION = "spans"
_DUPLICATE_KEY = 11_000


class Spans:
    """All spans that have arrived and not yet expired."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._raw = database.raw[_COLLECTION]

    async def open(self) -> None:
        """Creates collection and indexes."""
        indexes = [
            IndexModel([("trace_id", ASCENDING), ("start_ns", ASCENDING)], name="trace"),
            IndexModel([("expire_time", ASCENDING)], name="expire", expireAfterSeconds=0),
        ]
        await self._database.ensure(_COLLECTION, indexes, required=["trace_id", "span_id", "expire_time"])

    async def insert(self, documents: list[Document]) -> None:
        """Stores spans; those that are there already stay as they are."""
        try:
            await self._raw.insert_many(documents, ordered=False)
        except BulkWriteError as error:
            refused = [e for e in (error.details or {}).get("writeErrors", []) if e["code"] != _DUPLICATE_KEY]
            if refused:
                log.error("%d spans were refused: %s", len(refused), refused[0].get("errmsg"))

    async def of_trace(self, trace_id: str, limit: int) -> list[Document]:
        """The spans of a trace by start time."""
        found = self._raw.find({"trace_id": trace_id}).sort([("start_ns", ASCENDING), ("_id", ASCENDING)])
        return [dict(document) for document in await found.limit(limit).to_list(limit)]
