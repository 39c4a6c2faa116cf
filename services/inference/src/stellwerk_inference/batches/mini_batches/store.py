"""The mini-batches of jobs in MongoDB: work items that replicas lease.

Thousands of them move independently, each by one atomic operation that compares its
lease, so that no two replicas have the same, and whoever lost a lease can change
nothing. They are not in the journal; the job is.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pymongo import ASCENDING, IndexModel, ReturnDocument

from stellwerk_inference.batches import domain
from stellwerk_platform import failpoints, paging
from stellwerk_platform.documents import Document, from_document, to_document
from stellwerk_platform.mongo import Database, Transaction
from stellwerk_platform.workspace_data import begins_with
from stellwerk_protos.common.v1.common_pb2 import File, Reason
from stellwerk_protos.inference.v1 import batches_pb2 as pb

LEASE_SECONDS = 30.0
COLLECTION = "batch_items"
SCORE, MERGE = "score", "merge"
_WAITING = pb.MiniBatchState.Name(pb.MINI_BATCH_STATE_WAITING)
_RUNNING = pb.MiniBatchState.Name(pb.MINI_BATCH_STATE_RUNNING)
_SUCCEEDED = pb.MiniBatchState.Name(pb.MINI_BATCH_STATE_SUCCEEDED)
_FAILED = pb.MiniBatchState.Name(pb.MINI_BATCH_STATE_FAILED)
_TO_DO = [_WAITING, _RUNNING]
_LEASE_FIELDS = ("lease_id", "lease_time", "lease_expire_time")
_LET: Document = {"$set": {"state": _WAITING}, "$unset": dict.fromkeys(_LEASE_FIELDS, "")}


@dataclass(frozen=True)
class Taken:
    """A piece of work as a replica gets it; `lost_count` is how often a lease of it was lost."""

    name: str
    job: str
    kind: str
    lease_id: str
    expire_time: datetime
    lost_count: int
    files: Sequence[File]


class MiniBatchStore:
    """The one collection: mini-batches, and for each job that needs it the merge of its results."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._items = database.raw[COLLECTION]

    async def open(self) -> None:
        """Creates collection and indexes."""
        of_job = [("job", ASCENDING), ("kind", ASCENDING)]
        counted = [(name, ASCENDING) for name in ("file_count", "succeeded_file_count", "row_count")]
        indexes = [
            IndexModel([*of_job, ("index", ASCENDING)]),
            IndexModel([*of_job, ("state", ASCENDING), ("index", ASCENDING)]),
            # Progress is read from this index alone.
            IndexModel([*of_job, ("state", ASCENDING), *counted]),
            IndexModel([("results.sha256", ASCENDING)], sparse=True),
        ]
        await self._database.ensure(COLLECTION, indexes, required=["job", "kind", "index", "state"])

    async def jobs_with(self, workspace: str, digests: Sequence[str]) -> dict[str, set[str]]:
        """The jobs of a workspace by those of the blobs that they have among their results."""
        where = {"results.sha256": {"$in": list(digests)}, **begins_with("_id", f"{workspace}/")}
        found: dict[str, set[str]] = {}
        async for document in self._items.find(where, {"job": 1, "results.sha256": 1}):
            for result in document["results"]:
                found.setdefault(result["sha256"], set()).add(document["job"])
        return {digest: found[digest] for digest in digests if digest in found}

    async def results_in(self, tx: Transaction, job: str) -> list[str]:
        """The digests of what the pieces of a job came to, that of the merge too."""
        where = {"job": job, "kind": {"$in": [SCORE, MERGE]}}
        found = await self._items.distinct("results.sha256", where, session=tx.session)
        return [str(digest) for digest in found]

    async def end_leases_in(self, tx: Transaction, job: str) -> None:
        """Ends all leases of a job, so that no result comes any more."""
        where = {"job": job, "kind": {"$in": [SCORE, MERGE]}, "state": _RUNNING}
        await self._items.update_many(where, _LET, session=tx.session)

    async def add_in(self, tx: Transaction, job: str, pieces: Sequence[Sequence[File]]) -> None:
        """Stores the mini-batches of a new job."""
        documents = [_item(job, index, piece) for index, piece in enumerate(pieces)]
        await self._items.insert_many(documents, session=tx.session)

    async def remove_in(self, tx: Transaction, job: str) -> None:
        """Removes all pieces of a job."""
        await self._items.delete_many({"job": job}, session=tx.session)

    async def take(
        self, job: str, kind: str, replica: str, held: Sequence[str], asked: datetime
    ) -> Taken | None:
        """Leases the first piece that waits, whose lease has expired, or that the replica has forgotten.

        It has forgotten what it had before it `asked` and does not say that it holds.
        """
        now = datetime.now(UTC)
        expire = now + timedelta(seconds=LEASE_SECONDS)
        lost = {"$cond": [{"$eq": ["$state", _RUNNING]}, 1, 0]}
        lease_id = secrets.token_hex(16)
        document = await self._items.find_one_and_update(
            {
                "job": job,
                "kind": kind,
                "state": {"$in": _TO_DO},
                "$or": [
                    {"state": _WAITING},
                    {"lease_expire_time": {"$lte": now}},
                    {"replica": replica, "lease_id": {"$nin": list(held)}, "lease_time": {"$lt": asked}},
                ],
            },
            [
                {
                    "$set": {
                        "state": _RUNNING,
                        "lease_id": lease_id,
                        "lease_time": now,
                        "lease_expire_time": expire,
                        "replica": replica,
                        "start_time": now,
                        "attempt_count": {"$add": [{"$ifNull": ["$attempt_count", 0]}, 1]},
                        "lost_count": {"$add": ["$lost_count", lost]},
                    }
                }
            ],
            sort=[("index", ASCENDING)],
            return_document=ReturnDocument.AFTER,
        )
        failpoints.hit("batch.leased")
        return None if document is None else _taken(document)

    async def renew(self, name: str, lease_id: str, replica: str) -> datetime | None:
        """Until when the lease holds from now on; None if it is not any more."""
        expire = datetime.now(UTC) + timedelta(seconds=LEASE_SECONDS)
        result = await self._items.update_one(
            {"_id": name, "lease_id": lease_id, "replica": replica, "state": _RUNNING},
            {"$set": {"lease_expire_time": expire}},
        )
        return expire if result.matched_count else None

    async def release(self, name: str, lease_id: str) -> None:
        """Ends a lease whose work is dropped; without effect if it is another one by now."""
        await self._items.update_one(
            {"_id": name, "lease_id": lease_id, "state": _RUNNING},
            _LET,
        )

    async def leaseholders(self, job: str) -> list[str]:
        """The replicas that have living leases of a job."""
        return list(await self._items.distinct("replica", _living(job)))

    async def expire(self, job: str, replicas: Sequence[str]) -> None:
        """Ends the leases of replicas that are no more, as if their time had run out."""
        await self._items.update_many(
            {**_living(job), "replica": {"$in": list(replicas)}},
            {"$set": {"lease_expire_time": datetime.now(UTC)}},
        )

    async def succeed(self, request: pb.FinishMiniBatchRequest, shortfall: Reason | None = None) -> bool:
        """Stores results, and why they are fewer than its files; False if the lease is somebody else's."""
        changes: Document = {
            "state": _SUCCEEDED,
            "results": [to_document(file) for file in request.results],
            "succeeded_file_count": request.succeeded_file_count,
            "row_count": request.row_count,
            "end_time": datetime.now(UTC),
        }
        changes["done_lease_id"] = request.lease_id
        if shortfall is not None:
            changes["reason"] = to_document(shortfall)
        return await self._finish(request, {"$set": changes, "$unset": dict.fromkeys(_LEASE_FIELDS, "")})

    async def fail(self, request: pb.FinishMiniBatchRequest, max_retries: int) -> bool:
        """Counts a failure: the piece waits again, or has failed; False if the lease is somebody else's."""
        is_last = {"$gte": ["$failure_count", max_retries]}
        changes: Document = {
            "failure_count": {"$add": ["$failure_count", 1]},
            "state": {"$cond": [is_last, _FAILED, _WAITING]},
            "end_time": {"$cond": [is_last, datetime.now(UTC), "$$REMOVE"]},
            # What a node says is a value, whatever it looks like.
            "reason": {"$literal": to_document(request.failure)},
            "done_lease_id": {"$literal": request.lease_id},
        }
        return await self._finish(request, [{"$set": changes}, {"$unset": list(_LEASE_FIELDS)}])

    async def _finish(self, request: pb.FinishMiniBatchRequest, update: Document | list[Document]) -> bool:
        mine = {"_id": request.name, "lease_id": request.lease_id, "replica": request.replica}
        result = await self._items.update_one({**mine, "state": _RUNNING}, update)
        failpoints.hit("batch.item_finished")
        if result.matched_count:
            return True
        # Said again, by a node that did not hear the answer.
        again = {"_id": request.name, "done_lease_id": request.lease_id}
        return await self._items.find_one(again, {"_id": 1}) is not None

    async def give_up(self, taken: Taken, reason: Reason) -> None:
        """A piece that is not tried again."""
        changes = {"state": _FAILED, "reason": to_document(reason), "end_time": datetime.now(UTC)}
        await self._items.update_one(
            {"_id": taken.name, "lease_id": taken.lease_id, "state": _RUNNING},
            {"$set": changes, "$unset": dict.fromkeys(_LEASE_FIELDS, "")},
        )

    async def add_merge_in(self, tx: Transaction, job: str) -> None:
        """The piece of work that puts the results together."""
        document = _item(job, 0, ())
        document.update(_id=domain.merge_name(job), kind=MERGE)
        await self._items.update_one(
            {"_id": document.pop("_id")}, {"$setOnInsert": document}, upsert=True, session=tx.session
        )

    async def find(self, name: str) -> tuple[pb.MiniBatch, int] | None:
        """A piece of work, and how many files it has."""
        document = await self._items.find_one({"_id": name})
        return None if document is None else (_mini_batch(document), document.get("file_count", 0))

    async def merged(self, job: str) -> pb.MiniBatch | None:
        """The merge of a job, once it is done or has failed."""
        found = await self._items.find_one({"_id": domain.merge_name(job), "state": {"$nin": _TO_DO}})
        return None if found is None else _mini_batch(found)

    async def is_open(self, job: str, kind: str = SCORE) -> bool:
        """Whether a piece waits or is worked on."""
        where = {"job": job, "kind": kind, "state": {"$in": _TO_DO}}
        return await self._items.find_one(where, {"_id": 1}) is not None

    async def is_worked_on(self, job: str) -> bool:
        """Whether a lease lives."""
        return await self._items.find_one(_living(job), {"_id": 1}) is not None

    async def count_open(self, jobs: Sequence[str], limit: int) -> int:
        """How many pieces wait or are worked on, up to a limit."""
        where = {"job": {"$in": list(jobs)}, "kind": {"$in": [SCORE, MERGE]}, "state": {"$in": _TO_DO}}
        return int(await self._items.count_documents(where, limit=limit))

    async def progress(self, job: str) -> pb.BatchProgress:
        """How far it is, from the mini-batches."""
        found = pb.BatchProgress()
        async for group in self._items.aggregate(
            [
                {"$match": {"job": job, "kind": SCORE}},
                {
                    "$group": {
                        "_id": "$state",
                        "count": {"$sum": 1},
                        "files": {"$sum": "$file_count"},
                        "succeeded": {"$sum": "$succeeded_file_count"},
                        "rows": {"$sum": "$row_count"},
                    }
                },
            ]
        ):
            _add(found, group)
        return found

    async def failure(self, job: str) -> domain.Failure:
        """An example of what went wrong."""
        where = {"job": job, "kind": SCORE, "state": _FAILED}
        document = await self._items.find_one(where, sort=[("index", ASCENDING)])
        if document is None:
            short = {"$lt": ["$succeeded_file_count", "$file_count"]}
            where = {"job": job, "kind": SCORE, "state": _SUCCEEDED, "$expr": short}  # type: ignore[dict-item]
            document = await self._items.find_one(where, sort=[("index", ASCENDING)])
            if document is None:
                return domain.Failure()
            return domain.Failure(document["_id"], _first_file(document), "run returned nothing for it.")
        return domain.Failure(
            document["_id"], _first_file(document), document.get("reason", {}).get("message", "")
        )

    async def results(self, job: str) -> list[File]:
        """The results of all mini-batches, in the order of the input."""
        where = {"job": job, "kind": SCORE, "state": _SUCCEEDED}
        found = self._items.find(where, {"results": 1}).sort("index", ASCENDING)
        return [from_document(File, d) async for item in found for d in item.get("results", ())]

    async def page(self, request: pb.ListMiniBatchesRequest) -> tuple[list[pb.MiniBatch], str]:
        """One page, in the order of the input, and the token of the next one."""
        query = (COLLECTION, request.parent, request.state)
        size = paging.page_size(request.page_size)
        where: Document = {"job": request.parent, "kind": SCORE}
        if (after := paging.decode(request.page_token, *query)) is not None:
            where["index"] = {"$gt": int(after)}
        if request.state:
            where["state"] = pb.MiniBatchState.Name(request.state)
        items: list[pb.MiniBatch] = []
        room, last = paging.Room(size), 0
        async for document in self._items.find(where, {"files": 0}).sort("index", ASCENDING).limit(size + 1):
            item = _mini_batch(document)
            if not room.take(item.ByteSize()):
                return items, paging.encode(last, *query)
            items.append(item)
            last = document["index"]
        return items, ""


def _living(job: str) -> Document:
    """The filter for the pieces of a job that somebody works on."""
    where: Document = {"job": job, "kind": {"$in": [SCORE, MERGE]}, "state": _RUNNING}
    return {**where, "lease_expire_time": {"$gt": datetime.now(UTC)}}


def _item(job: str, index: int, files: Sequence[File]) -> Document:
    return {
        "_id": domain.mini_batch_name(job, index),
        "job": job,
        "kind": SCORE,
        "index": index,
        "state": _WAITING,
        "files": [to_document(file) for file in files],
        "file_count": len(files),
        "succeeded_file_count": 0,
        "row_count": 0,
        "failure_count": 0,
        "lost_count": 0,
    }


def _taken(document: Mapping[str, Any]) -> Taken:
    return Taken(
        name=document["_id"],
        job=document["job"],
        kind=document["kind"],
        lease_id=document["lease_id"],
        expire_time=document["lease_expire_time"],
        lost_count=document["lost_count"],
        files=[from_document(File, file) for file in document["files"]],
    )


def _mini_batch(document: Mapping[str, Any]) -> pb.MiniBatch:
    return from_document(pb.MiniBatch, document)


def _first_file(document: Mapping[str, Any]) -> str:
    return next((str(file["path"]) for file in document["files"]), "")


def _add(progress: pb.BatchProgress, group: Mapping[str, Any]) -> None:
    state, files = group["_id"], group["files"]
    progress.mini_batch_count += group["count"]
    progress.file_count += files
    if state == _SUCCEEDED:
        progress.succeeded_mini_batch_count += group["count"]
        progress.succeeded_file_count += group["succeeded"]
        progress.failed_file_count += files - group["succeeded"]
        progress.row_count += group["rows"]
    elif state == _FAILED:
        progress.failed_mini_batch_count += group["count"]
        progress.failed_file_count += files
    elif state == _RUNNING:
        progress.running_mini_batch_count += group["count"]
