"""Logs in MongoDB: one document a log, and its text in chunks; keys as for metrics."""

import struct
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from bson import Binary
from pymongo import ASCENDING, DESCENDING, IndexModel, ReplaceOne

from stellwerk_platform.documents import Document
from stellwerk_platform.mongo import Database, Session
from stellwerk_protos.runs.v1.logs_pb2 import Log
from stellwerk_runs.logs.domain import CHUNK_BYTES, LogEnd, LogText
from stellwerk_runs.logs.replicas import KEPT, is_replica

_MARK = struct.Struct("<qq")
# Of what a replica says, so much at least can be read.
REPLICA_BYTES = 64 * 1024 * 1024


class LogStore:
    """Two collections; written by the writer only."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._ends = database.raw["logs"]
        self._chunks = database.raw["log_chunks"]

    async def open(self) -> None:
        """Creates the collections."""
        # Only what replicas say has an end: they live for as long as they are wanted.
        expiry = [IndexModel([("expire_time", ASCENDING)], expireAfterSeconds=0)]
        await self._database.ensure("logs", required=["run", "log", "size_bytes"])
        await self._database.ensure("log_chunks", expiry, required=["run", "log", "offset", "data"])

    async def load(self, run: str, logs: Iterable[str], session: Session) -> dict[str, LogEnd]:
        """How far the logs are, by path; at 0 for new ones."""
        ends = {log: LogEnd(log) for log in logs}
        keys = [_key(run, log) for log in ends]
        async for document in self._ends.find({"_id": {"$in": keys}}, session=session):
            ends[document["log"]] = LogEnd(document["log"], document["size_bytes"], document["tail"])
        return ends

    async def tails(self, run: str, ends: Iterable[LogEnd], session: Session) -> dict[str, LogText]:
        """The last chunk by log, where the next text goes into it."""
        keys = [_chunk_key(run, end.log, end.tail) for end in ends if end.tail_is_small]
        if not keys:
            return {}
        chunks = self._chunks.find({"_id": {"$in": keys}}, session=session)
        return {document["log"]: _to_text(document) async for document in chunks}

    async def save(
        self, run: str, ends: Sequence[LogEnd], texts: Sequence[LogText], session: Session
    ) -> None:
        """Writes sizes and text."""
        await self._ends.bulk_write(
            [ReplaceOne({"_id": _key(run, end.log)}, _from_end(run, end), upsert=True) for end in ends],
            session=session,
        )
        await self._chunks.bulk_write(
            [
                ReplaceOne(
                    {"_id": _chunk_key(run, text.log, text.offset)}, _from_text(run, text), upsert=True
                )
                for text in texts
            ],
            session=session,
        )
        if is_replica(run):
            for end in ends:
                await self._trim(run, end, session)

    async def _trim(self, run: str, end: LogEnd, session: Session) -> None:
        """Of a replica's log the last part stays, in whole chunks."""
        last = _chunk_key(run, end.log, max(end.size_bytes - REPLICA_BYTES - CHUNK_BYTES, 0))
        first = _chunk_key(run, end.log, 0)
        await self._chunks.delete_many({"_id": {"$gte": first, "$lt": last}}, session=session)

    async def begin(self, run: str, log: str) -> int:
        """The offset of the first byte that is still there; 0 for an empty log."""
        keys = {"$gte": _chunk_key(run, log, 0), "$lt": f"{_key(run, log)}$"}
        first = await self._chunks.find_one({"_id": keys}, {"offset": 1}, sort=[("_id", ASCENDING)])
        return int(first["offset"]) if first else 0

    async def list(self, run: str) -> list[Log]:
        """The logs by path."""
        cursor = self._ends.find({"_id": {"$gt": f"{run}#", "$lt": f"{run}$"}}).sort("_id", ASCENDING)
        return [Log(log=document["log"], size_bytes=document["size_bytes"]) async for document in cursor]

    async def size(self, run: str, log: str) -> int | None:
        """Bytes stored of the log; None when nothing ever was."""
        end = await self._ends.find_one({"_id": _key(run, log)}, {"size_bytes": 1})
        return None if end is None else int(end["size_bytes"])

    async def read(self, run: str, log: str, offset: int) -> AsyncIterator[LogText]:
        """The stored text from byte `offset` on, in pieces, without gap."""
        torn_at = -1
        while True:
            async for text in self._from(run, log, offset):
                if text.offset > offset:
                    break
                if offset < (end := text.offset + len(text.data)):
                    yield text.cut(offset - text.offset, len(text.data))
                    offset = end
            else:
                return
            # The chunk before the last one has grown since it was read; it grows to its end in one step.
            if torn_at == offset:
                raise RuntimeError(f"{run} has later bytes of {log!r}, but not {offset}")
            torn_at = offset

    async def _from(self, run: str, log: str, offset: int) -> AsyncIterator[LogText]:
        """The chunks from the one that holds byte `offset` on."""
        same = {"run": run, "log": log}
        key = _chunk_key(run, log, offset)
        begin = await self._chunks.find_one(
            {"_id": {"$gt": f"{_key(run, log)}#", "$lte": key}, **same},
            {"_id": 1},
            sort=[("_id", DESCENDING)],
        )
        if begin is None:
            return
        where = {"_id": {"$gte": begin["_id"], "$lt": f"{_key(run, log)}$"}, **same}
        async for document in self._chunks.find(where).sort("_id", ASCENDING):
            yield _to_text(document)


def _key(run: str, log: str) -> str:
    return f"{run}#{log}"


def _chunk_key(run: str, log: str, offset: int) -> str:
    return f"{run}#{log}#{offset:016d}"


def _from_end(run: str, end: LogEnd) -> Document:
    return {
        "_id": _key(run, end.log),
        "run": run,
        "log": end.log,
        "size_bytes": end.size_bytes,
        "tail": end.tail,
    }


def _from_text(run: str, text: LogText) -> Document:
    return {
        "_id": _chunk_key(run, text.log, text.offset),
        "run": run,
        "log": text.log,
        "offset": text.offset,
        "data": Binary(text.data),
        "marks": Binary(b"".join(_MARK.pack(*mark) for mark in text.marks)),
        **({"expire_time": datetime.now(UTC) + KEPT} if is_replica(run) else {}),
    }


def _to_text(document: Mapping[str, Any]) -> LogText:
    marks = tuple((offset, time) for offset, time in _MARK.iter_unpack(bytes(document["marks"])))
    return LogText(document["log"], document["offset"], bytes(document["data"]), marks)
