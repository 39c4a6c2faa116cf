"""Writes what arrived for one run in one transaction, and keeps aside what came too early.

The head document of a run counts the writes (their number is the version of the
points that they bring) and makes two writers of the same run wait for each other.
"""

import asyncio
import json
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from bson import Binary
from pymongo import ASCENDING, IndexModel, ReplaceOne, ReturnDocument
from pymongo.errors import DuplicateKeyError

from stellwerk_platform import failpoints
from stellwerk_platform.errors import NotFound
from stellwerk_platform.mongo import Database, Session, Transaction
from stellwerk_protos.runs.v1.ingest_pb2 import AppendRequest, Record
from stellwerk_runs.ingest.domain import LOGS, METRICS, RECORDS, arrivals, message_id, piece_of
from stellwerk_runs.ingest.sequence import Arrival, Fresh, Key, advance
from stellwerk_runs.logs.domain import LogEnd, LogText, Written
from stellwerk_runs.logs.store import LogStore
from stellwerk_runs.metrics.domain import Chunk, Points, Series, join
from stellwerk_runs.metrics.store import MetricStore
from stellwerk_runs.records import domain as records
from stellwerk_runs.records.store import RecordStore
from stellwerk_runs.runs.store import RunStore

log = logging.getLogger(__name__)
# What waits longer than this for something before it never gets it.
_EARLY_LIFE = timedelta(days=7)
_EARLY_PER_RUN = 500
# Of what waited, this much goes into one transaction.
_EARLY_BYTES = 4 * 1024 * 1024
# Ids of messages that are not taken, and whether more of what waited can be stored now.
_Outcome: TypeAlias = tuple[set[str], bool]
# The next position by sequence, and what stores what is new.
_Writes: TypeAlias = tuple[dict[Key, int], Callable[[Sequence[Fresh]], Awaitable[None]]]


@dataclass(frozen=True)
class Message:
    """A piece and an id of the message that brought it, unique within a batch."""

    id: str
    piece: AppendRequest


class IngestStore:
    """The writer's side of metrics, logs and records."""

    def __init__(
        self,
        database: Database,
        metrics: MetricStore,
        logs: LogStore,
        records: RecordStore,
        runs: RunStore,
    ) -> None:
        self._database = database
        self._metrics = metrics
        self._logs = logs
        self._records = records
        self._runs = runs
        self._heads = database.raw["ingest_heads"]
        self._early = database.raw["ingest_early"]

    async def open(self) -> None:
        """Creates collections and indexes."""
        removed = IndexModel(
            [("removed_time", ASCENDING)], expireAfterSeconds=int(_EARLY_LIFE.total_seconds())
        )
        unprojected = IndexModel([("unprojected", ASCENDING)], sparse=True)
        await self._database.ensure("ingest_heads", [removed, unprojected], required=["version"])
        indexes = [
            IndexModel([("sequence", ASCENDING), ("position", ASCENDING)]),
            IndexModel([("run", ASCENDING)]),
            IndexModel([("time", ASCENDING)], expireAfterSeconds=int(_EARLY_LIFE.total_seconds())),
        ]
        await self._database.ensure("ingest_early", indexes, ["run", "sequence", "body", "time"])

    async def version(self, kind: str, run: str) -> int:
        """The number of writes so far."""
        head = await self._heads.find_one({"_id": _head(kind, run)}, {"version": 1})
        return int(head["version"]) if head else 0

    async def unprojected(self) -> AsyncIterator[tuple[str, int]]:
        """Runs with metrics that searches have not been told of, each with the number of its writes."""
        async for head in self._heads.find({"unprojected": True}, {"version": 1}):
            yield head["_id"].partition("#")[2], head["version"]

    async def projected(self, run: str, version: int) -> None:
        """Searches know of all the metrics that were written up to a version."""
        await self._heads.update_one(
            {"_id": _head(METRICS, run), "version": version}, {"$unset": {"unprojected": ""}}
        )

    async def write(self, kind: str, run: str, messages: Sequence[Message]) -> set[str]:
        """Stores each point, byte and record that is new, once, with all that waited for them.

        Returns the ids of messages that are not taken because too much of this run
        waits already for something before it; they must be sent again later.
        """

        tries = 0

        async def work(tx: Transaction) -> _Outcome:
            # A service that was killed leaves its documents locked for some seconds; the driver
            # would try again at once, and again.
            nonlocal tries
            await asyncio.sleep(min(0.005 * (2**tries - 1), 0.5))
            tries = min(tries + 1, 10)
            written = await self._write_in(tx, kind, run, messages)
            failpoints.hit("writer.before_commit")
            return written

        while True:
            try:
                refused, more = await self._transact(kind, work)
                failpoints.hit("writer.committed")
                if not more:
                    return refused
            except DuplicateKeyError:
                # Another replica was faster with the first write of a run.
                continue

    async def _transact(self, kind: str, work: Callable[[Transaction], Awaitable[_Outcome]]) -> _Outcome:
        if kind == RECORDS:
            # Parameters and tags change the run, which the journal tells.
            return await self._database.commit(work)
        async with await self._database.client.start_session() as session:
            return await session.with_transaction(lambda one: work(Transaction(self._database, one)))

    async def _write_in(self, tx: Transaction, kind: str, run: str, messages: Sequence[Message]) -> _Outcome:
        session = tx.session
        mark = {"$set": {"unprojected": True}} if kind == METRICS else {}
        head = await self._heads.find_one_and_update(
            {"_id": _head(kind, run)},
            {"$inc": {"version": 1}, **mark},
            upsert=True,
            return_document=ReturnDocument.AFTER,
            session=session,
        )
        if head.get("removed_time"):
            # What was still under way when the run was removed goes with it.
            return set(), False
        incoming = [a for message in messages for a in arrivals(message.piece, message.id)]
        store = {METRICS: self._metric_writes, LOGS: self._log_writes, RECORDS: self._record_writes}[kind]
        ends, save = await store(tx, run, head["version"], incoming)
        early: dict[str, Arrival] = {}
        more = False
        if head.get("early"):
            early, more = await self._take_early(session, kind, run, incoming, ends)
        fresh, waiting = advance([*incoming, *early.values()], ends)
        if fresh:
            await save(fresh)
        return await self._keep_early(session, kind, run, early, waiting), more

    async def _metric_writes(
        self, tx: Transaction, run: str, version: int, incoming: Sequence[Arrival]
    ) -> _Writes:
        series = await self._metrics.load(run, {arrival.key[0] for arrival in incoming}, tx.session)
        ends: dict[Key, int] = {
            (metric, source): count for metric, one in series.items() for source, count in one.next.items()
        }

        async def save(fresh: Sequence[Fresh]) -> None:
            parts: dict[str, list[Points]] = defaultdict(list)
            for item in fresh:
                metric, source = item.arrival.key
                parts[metric].append(_points(item))
                series[metric].next[source] = ends[item.arrival.key]
            changed: list[Series] = [series[metric] for metric in parts]
            tails = await self._metrics.tails(run, changed, tx.session)
            chunks: list[Chunk] = []
            for one in changed:
                chunks += one.append(join(parts[one.metric]), tails.get(one.metric), version)
            await self._metrics.save(run, changed, chunks, tx.session)

        return ends, save

    async def _log_writes(
        self, tx: Transaction, run: str, version: int, incoming: Sequence[Arrival]
    ) -> _Writes:
        logs = await self._logs.load(run, {arrival.key[0] for arrival in incoming}, tx.session)
        ends: dict[Key, int] = {(path,): end.size_bytes for path, end in logs.items()}

        async def save(fresh: Sequence[Fresh]) -> None:
            parts: dict[str, list[Written]] = defaultdict(list)
            for item in fresh:
                parts[item.arrival.key[0]].append(_text(item))
            changed: list[LogEnd] = [logs[path] for path in parts]
            tails = await self._logs.tails(run, changed, tx.session)
            texts: list[LogText] = []
            for end in changed:
                texts += end.append(parts[end.log], tails.get(end.log))
            await self._logs.save(run, changed, texts, tx.session)

        return ends, save

    async def _record_writes(
        self, tx: Transaction, run: str, version: int, incoming: Sequence[Arrival]
    ) -> _Writes:
        count, sources = await self._records.load(run, tx.session)
        ends: dict[Key, int] = {(source,): taken for source, taken in sources.items()}

        async def save(fresh: Sequence[Fresh]) -> None:
            new = [record for item in fresh for record in _records(item)]
            listed = [record for record in new if record.kind not in records.ANNOTATIONS]
            taken = {key[0]: end for key, end in ends.items()}
            await self._records.save(run, count, listed, taken, tx.session)
            await self._annotate(tx, run, new)

        return ends, save

    async def _annotate(self, tx: Transaction, run: str, new: Sequence[Record]) -> None:
        params, tags = records.annotations(new)
        if not params and not tags:
            return
        try:
            await self._runs.annotate_in(tx, run, params, tags)
        except NotFound:
            log.warning("%s is gone; its parameters and tags are dropped", run)

    async def _take_early(
        self, session: Session, kind: str, run: str, incoming: Sequence[Arrival], ends: Mapping[Key, int]
    ) -> tuple[dict[str, Arrival], bool]:
        """What can now go on of that which waits, by document id, and whether there is more of it.

        Bounded: a transaction has to fit into MongoDB's cache.
        """
        reach = {arrival.key: ends.get(arrival.key, 0) for arrival in incoming}
        for arrival in sorted(incoming, key=lambda arrival: arrival.position):
            if arrival.position <= reach[arrival.key]:
                reach[arrival.key] = max(reach[arrival.key], arrival.position + arrival.length)
        found: dict[str, Arrival] = {}
        size = 0
        for key, end in reach.items():
            # Mostly the first one says that nothing can go on yet: no more are fetched than needed.
            waits = self._early.find({"sequence": _sequence(kind, run, key)}, session=session, batch_size=4)
            async for document in waits.sort("position", ASCENDING):
                if size > _EARLY_BYTES:
                    return found, True
                piece = AppendRequest.FromString(bytes(document["body"]))
                arrival = arrivals(piece, document["_id"])[0]
                if arrival.position > end:
                    break
                end = max(end, arrival.position + arrival.length)
                found[document["_id"]] = arrival
                size += len(document["body"])
        return found, False

    async def _keep_early(
        self, session: Session, kind: str, run: str, early: dict[str, Arrival], waiting: Sequence[Arrival]
    ) -> set[str]:
        still = {arrival.origin for arrival in waiting} & early.keys()
        new = [arrival for arrival in waiting if arrival.origin not in early]
        if len(still) < len(early):
            await self._early.delete_many({"_id": {"$in": list(early.keys() - still)}}, session=session)
        if len(still) == len(early) and not new:
            return set()
        room = _EARLY_PER_RUN - await self._early.count_documents({"run": run}, session=session)
        kept, refused = new[: max(room, 0)], new[max(room, 0) :]
        if kept:
            documents = [_early_document(kind, run, arrival) for arrival in kept]
            await self._early.bulk_write(
                [ReplaceOne({"_id": document["_id"]}, document, upsert=True) for document in documents],
                session=session,
            )
        count = await self._early.count_documents({"run": run}, session=session)
        await self._heads.update_one(
            {"_id": _head(kind, run)}, {"$set": {"early": count > 0}}, session=session
        )
        return {arrival.origin for arrival in refused}


def _head(kind: str, run: str) -> str:
    return f"{kind}#{run}"


def _sequence(kind: str, run: str, key: Key) -> str:
    return json.dumps([kind, run, *key])


def _early_document(kind: str, run: str, arrival: Arrival) -> dict[str, object]:
    body = piece_of(run, arrival).SerializeToString(deterministic=True)
    return {
        "_id": message_id(body),
        "run": run,
        "sequence": _sequence(kind, run, arrival.key),
        "position": arrival.position,
        "body": Binary(body),
        "time": datetime.now(UTC),
    }


def _points(item: Fresh) -> Points:
    assert isinstance(item.arrival.payload, Points)
    return item.arrival.payload.slice(item.skip)


def _text(item: Fresh) -> Written:
    assert isinstance(item.arrival.payload, Written)
    return Written(item.arrival.payload.data[item.skip :], item.arrival.payload.time)


def _records(item: Fresh) -> Sequence[Record]:
    assert isinstance(item.arrival.payload, tuple)
    return item.arrival.payload[item.skip :]
