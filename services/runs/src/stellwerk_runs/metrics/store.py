"""Metrics in MongoDB: one summary a metric, and its points in chunks.

Keys begin with `<run>#`, which no run name contains, so that the documents of a
run, and within it of a metric, lie side by side.
"""

import struct
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bson import Binary
from google.protobuf.timestamp_pb2 import Timestamp
from pymongo import ASCENDING, IndexModel, ReplaceOne

from stellwerk_platform import paging
from stellwerk_platform.documents import Document
from stellwerk_platform.mongo import Database, Session
from stellwerk_protos.runs.v1.ingest_pb2 import MetricColumns
from stellwerk_protos.runs.v1.metrics_pb2 import MetricSummary
from stellwerk_runs.metrics.domain import CHUNK_POINTS, Chunk, Points, Series, join

_CHUNKS_PER_PAGE = 32
# With the key, so that which chunks are new is known without reading one.
_BY_VERSION = [("run", ASCENDING), ("version", ASCENDING), ("_id", ASCENDING)]
_BY_KEY = [("_id", ASCENDING)]
# Of more new chunks than these the keys are not held: the run's chunks are read one after the other.
_KEYS = 20_000
_MARK = struct.Struct("<qq")


@dataclass(frozen=True)
class Position:
    """How far a watcher is: all of version `since`, and of version `until` all up to chunk `key`."""

    since: int = 0
    until: int = 0
    key: str = ""


class MetricStore:
    """Two collections; written by the writer only."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._series = database.raw["metric_series"]
        self._chunks = database.raw["metric_chunks"]

    async def open(self) -> None:
        """Creates collections and indexes."""
        await self._database.ensure("metric_series", required=["run", "metric", "count"])
        by_version = IndexModel(_BY_VERSION)
        await self._database.ensure("metric_chunks", [by_version], ["run", "metric", "first", "version"])

    async def load(self, run: str, metrics: Iterable[str], session: Session) -> dict[str, Series]:
        """The series by metric, empty ones for new metrics."""
        series = {metric: Series(metric) for metric in metrics}
        keys = [_key(run, metric) for metric in series]
        async for document in self._series.find({"_id": {"$in": keys}}, session=session):
            series[document["metric"]] = _to_series(document)
        return series

    async def tails(self, run: str, series: Iterable[Series], session: Session) -> dict[str, Chunk]:
        """The last chunk by metric, where the next points go into it."""
        keys = [_chunk_key(run, one.metric, one.tail) for one in series if one.tail_is_small]
        if not keys:
            return {}
        chunks = self._chunks.find({"_id": {"$in": keys}}, session=session)
        return {document["metric"]: _to_chunk(document) async for document in chunks}

    async def save(
        self, run: str, series: Sequence[Series], chunks: Sequence[Chunk], session: Session
    ) -> None:
        """Writes summaries and chunks."""
        await self._series.bulk_write(
            [ReplaceOne({"_id": _key(run, s.metric)}, _from_series(run, s), upsert=True) for s in series],
            session=session,
        )
        await self._chunks.bulk_write(
            [
                ReplaceOne({"_id": _chunk_key(run, c.metric, c.first)}, _from_chunk(run, c), upsert=True)
                for c in chunks
            ],
            session=session,
        )

    async def summaries(self, run: str, size: int, token: str) -> tuple[list[MetricSummary], str]:
        """One page by name, and the token of the next one."""
        size = paging.page_size(size)
        after = paging.decode(token, "metrics", run)
        where = {"_id": {"$gt": _key(run, after or ""), "$lt": f"{run}$"}}
        cursor = self._series.find(where, {"sources": 0}).sort("_id", ASCENDING).limit(size + 1)
        documents = await cursor.to_list(size + 1)
        more = len(documents) > size
        token = paging.encode(documents[size - 1]["metric"], "metrics", run) if more else ""
        return [_to_summary(document) for document in documents[:size]], token

    async def last(self, run: str, most: int) -> dict[str, float]:
        """The last value by metric, of the first so many by name."""
        where = {"_id": {"$gt": _key(run, ""), "$lt": f"{run}$"}}
        cursor = self._series.find(where, {"metric": 1, "last": 1}).sort("_id", ASCENDING).limit(most)
        return {document["metric"]: document["last"] async for document in cursor}

    async def history(self, run: str, metric: str, first: int, count: int) -> tuple[Points, bool] | None:
        """Up to `count` points from index `first` on and whether there are more; None for no such metric."""
        summary = await self._series.find_one({"_id": _key(run, metric)}, {"count": 1})
        if summary is None:
            return None
        end = min(first + count, summary["count"])
        return await self.points(run, metric, first, end), end < summary["count"]

    async def points(self, run: str, metric: str, first: int, end: int) -> Points:
        """The points from index `first` up to but not including `end`."""
        where = {
            # The chunk that holds `first` begins at most one chunk's length before it.
            "_id": {
                "$gt": _chunk_key(run, metric, max(first - CHUNK_POINTS, -1)),
                "$lt": _chunk_key(run, metric, end),
            },
            "run": run,
            "metric": metric,
        }
        parts = []
        async for document in self._chunks.find(where).sort("_id", ASCENDING):
            chunk = _to_chunk(document)
            parts.append(chunk.points.slice(max(first - chunk.first, 0), max(end - chunk.first, 0)))
        return join(parts or [Points()])

    async def counts(
        self, runs: Sequence[str], metrics: Sequence[str], most: int
    ) -> list[tuple[str, str, int]]:
        """(run, metric, points) of up to `most` series; all metrics of the runs when none is named."""
        found: list[tuple[str, str, int]] = []
        for run in runs:
            where: Document = {"_id": {"$gt": f"{run}#", "$lt": f"{run}$"}}
            if metrics:
                where = {"_id": {"$in": [_key(run, metric) for metric in metrics]}}
            cursor = self._series.find(where, {"metric": 1, "count": 1}).sort("_id", ASCENDING)
            async for document in cursor.limit(most - len(found)):
                found.append((run, document["metric"], document["count"]))
            if len(found) >= most:
                break
        return found

    async def after(
        self, run: str, position: Position, version: int
    ) -> AsyncIterator[tuple[list[MetricColumns], Position]]:
        """What was written after `position`, up to `version`, in pieces, each with the position after it.

        Points never move and chunks never change their key, so a reader can stop after
        any piece and go on later, while more is being written.
        """
        until = position.until or version
        while position.since < until:
            held: list[MetricColumns] = []
            async for documents in self._changed(run, position):
                if held:
                    yield held, position
                position = replace(position, until=until, key=documents[-1]["_id"])
                found = [_to_chunk(document).between(position.since, until) for document in documents]
                held = [column for column in found if column is not None]
            # The next scan is for what was written while an earlier one was under way.
            position, until = Position(since=until), max(until, version)
            if held:
                yield held, position

    async def _changed(self, run: str, position: Position) -> AsyncIterator[list[Mapping[str, Any]]]:
        """The chunks that were written after `position.since`, from its key on in the order of keys, by page.

        Each is read once, however many there are: a follower learns the keys of the few new ones from
        an index, and whoever is far behind walks over all of the run's.
        """
        where: Document = {
            "_id": {"$gt": position.key or f"{run}#", "$lt": f"{run}$"},
            "run": run,
            "version": {"$gt": position.since},
        }
        if position.since:
            found = self._chunks.find(where, {"_id": 1}).hint(_BY_VERSION).limit(_KEYS + 1)
            keys = sorted([document["_id"] async for document in found])
            if len(keys) <= _KEYS:
                for start in range(0, len(keys), _CHUNKS_PER_PAGE):
                    some = {"_id": {"$in": keys[start : start + _CHUNKS_PER_PAGE]}}
                    cursor = self._chunks.find(some).hint(_BY_KEY).sort("_id", ASCENDING)
                    if documents := await cursor.to_list(_CHUNKS_PER_PAGE):
                        yield documents
                return
        while True:
            cursor = self._chunks.find(where).hint(_BY_KEY).sort("_id", ASCENDING).limit(_CHUNKS_PER_PAGE)
            documents = await cursor.to_list(_CHUNKS_PER_PAGE)
            if documents:
                yield documents
                where["_id"] = {"$gt": documents[-1]["_id"], "$lt": f"{run}$"}
            if len(documents) < _CHUNKS_PER_PAGE:
                return


def _key(run: str, metric: str) -> str:
    return f"{run}#{metric}"


def _chunk_key(run: str, metric: str, first: int) -> str:
    # -1 stands for what comes before the first chunk.
    return f"{run}#{metric}#{first:016d}" if first >= 0 else f"{run}#{metric}#"


def _from_series(run: str, series: Series) -> Document:
    return {
        "_id": _key(run, series.metric),
        "run": run,
        "metric": series.metric,
        "count": series.count,
        "min": series.minimum,
        "max": series.maximum,
        "last_step": series.last_step,
        "last_time": series.last_time,
        "last": series.last,
        "tail": series.tail,
        # Pairs, because a source's name may hold dots.
        "sources": [[source, count] for source, count in series.next.items()],
    }


def _to_series(document: Mapping[str, Any]) -> Series:
    return Series(
        metric=document["metric"],
        count=document["count"],
        minimum=document["min"],
        maximum=document["max"],
        last_step=document["last_step"],
        last_time=document["last_time"],
        last=document["last"],
        tail=document["tail"],
        next=dict(document["sources"]),
    )


def _to_summary(document: Mapping[str, Any]) -> MetricSummary:
    last_time = Timestamp()
    # Any int64 may have been sent; a Timestamp holds the years 1 to 9999.
    last_time.FromMilliseconds(min(max(document["last_time"], -62_135_596_800_000), 253_402_300_799_999))
    return MetricSummary(
        metric=document["metric"],
        count=document["count"],
        min=document["min"],
        max=document["max"],
        last_step=document["last_step"],
        last_time=last_time,
        last=document["last"],
    )


def _from_chunk(run: str, chunk: Chunk) -> Document:
    return {
        "_id": _chunk_key(run, chunk.metric, chunk.first),
        "run": run,
        "metric": chunk.metric,
        "first": chunk.first,
        "version": chunk.version,
        "marks": Binary(b"".join(_MARK.pack(*mark) for mark in chunk.marks)),
        "steps": Binary(chunk.points.steps),
        "times": Binary(chunk.points.times),
        "values": Binary(chunk.points.values),
    }


def _to_chunk(document: Mapping[str, Any]) -> Chunk:
    points = Points(bytes(document["steps"]), bytes(document["times"]), bytes(document["values"]))
    marks = tuple((version, count) for version, count in _MARK.iter_unpack(bytes(document["marks"])))
    return Chunk(document["metric"], document["first"], points, marks)
