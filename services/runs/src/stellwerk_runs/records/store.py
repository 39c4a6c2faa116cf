"""Records in MongoDB: one document a record, in the order stored; keys as for metrics."""

from collections.abc import Sequence
from typing import Any

from pymongo import ASCENDING, IndexModel

from stellwerk_platform import paging
from stellwerk_platform.documents import Document
from stellwerk_platform.mongo import Database, Session
from stellwerk_protos.runs.v1.ingest_pb2 import Record, RecordKind

_PAGE_BYTES = 8 * 1024 * 1024


class RecordStore:
    """Two collections; written by the writer only."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._records = database.raw["records"]
        self._ends = database.raw["record_ends"]

    async def open(self) -> None:
        """Creates collections and indexes."""
        await self._database.ensure("record_ends", required=["count", "sources"])
        by_name = IndexModel([("run", ASCENDING), ("record", ASCENDING), ("_id", ASCENDING)])
        await self._database.ensure("records", [by_name], ["run", "record", "kind"])

    async def load(self, run: str, session: Session) -> tuple[int, dict[str, int]]:
        """How many records are listed, and by source how many were taken."""
        document = await self._ends.find_one({"_id": run}, session=session)
        if document is None:
            return 0, {}
        return document["count"], dict(document["sources"])

    async def save(
        self, run: str, first: int, records: Sequence[Record], sources: dict[str, int], session: Session
    ) -> None:
        """Writes records from index `first` on, and how far the sources are."""
        if records:
            await self._records.insert_many(
                [_from_record(run, first + index, record) for index, record in enumerate(records)],
                session=session,
            )
        # Pairs, because a source's name may hold dots.
        end = {"count": first + len(records), "sources": [[name, count] for name, count in sources.items()]}
        await self._ends.replace_one({"_id": run}, end, upsert=True, session=session)

    async def page(self, run: str, name: str, size: int, token: str) -> tuple[list[Record], str]:
        """One page in the order stored, of up to 8 MiB, and the token of the next one."""
        size = paging.page_size(size)
        query = ("records", run, name)
        after = int(paging.decode(token, *query) or 0)
        where: Document = {"run": run, "_id": {"$gte": _key(run, after), "$lt": f"{run}$"}}
        if name:
            where["record"] = name
        records: list[Record] = []
        total = 0
        async for document in self._records.find(where).sort("_id", ASCENDING).limit(size + 1):
            record = _to_record(document)
            total += record.ByteSize()
            if len(records) == size or (records and total > _PAGE_BYTES):
                return records, paging.encode(int(document["_id"].rsplit("#", 1)[1]), *query)
            records.append(record)
        return records, ""


def _key(run: str, index: int) -> str:
    return f"{run}#{index:016d}"


def _from_record(run: str, index: int, record: Record) -> Document:
    return {
        "_id": _key(run, index),
        "run": run,
        "record": record.name,
        "kind": RecordKind.Name(record.kind),
        "step": record.step,
        "time": record.time,
        "value": record.value,
        "artifact": record.artifact,
    }


def _to_record(document: Any) -> Record:
    return Record(
        name=document["record"],
        kind=RecordKind.Value(document["kind"]),
        step=document["step"],
        time=document["time"],
        value=document["value"],
        artifact=document["artifact"],
    )
