"""Rules, and the removal of runs in MongoDB: marked in one transaction, then deleted piece by piece.

The mark takes the run out of `runs`, tells the journal, and tells the writer to drop
what is still under way. It stays in `removed_runs` for good: the name is not given
again, so that the journal never speaks of two runs by one name.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pymongo import ASCENDING, IndexModel, UpdateOne

from stellwerk_platform import failpoints, names
from stellwerk_platform.documents import Document
from stellwerk_platform.errors import NotFound
from stellwerk_platform.journal import Fact
from stellwerk_platform.mongo import Collection, Database, Transaction, stamp
from stellwerk_protos.runs.v1.retention_pb2 import RetentionRule
from stellwerk_protos.runs.v1.runs_pb2 import RunState
from stellwerk_runs.ingest.streams import STREAMS
from stellwerk_runs.retention import domain
from stellwerk_runs.runs import states
from stellwerk_runs.runs.store import RunStore

_BATCH = 1_000
_TERMINAL = [RunState.Name(state) for state in states.TERMINAL]  # type: ignore[arg-type]  # a set of ints
# Keys of these begin with `<run>#`.
_BY_PREFIX = ("metric_chunks", "metric_series", "records", "log_chunks", "logs")
_BY_NAME = ("record_ends", "run_leases", "run_cancels")


@dataclass(frozen=True)
class Size:
    """What a run takes."""

    points: int = 0
    log_bytes: int = 0


class RuleStore(Collection[RetentionRule]):
    """The rules, one an experiment."""

    def __init__(self, database: Database) -> None:
        by_workspace = IndexModel([("workspace", ASCENDING)])
        super().__init__(
            database,
            "retention_rules",
            RetentionRule,
            indexes=[by_workspace],
            extra=lambda rule: {"workspace": names.workspace_of(rule.name)},
        )


class RemovalStore:
    """Runs on their way out, and the blobs and snapshots that they leave behind."""

    def __init__(self, database: Database, runs: RunStore) -> None:
        self._database = database
        self._runs = runs
        self._raw = database.raw
        self._removed = database.raw["removed_runs"]
        self._blobs = database.raw["blob_releases"]
        self._snapshots = database.raw["snapshot_releases"]

    async def open(self) -> None:
        """Creates collections and indexes."""
        unfinished = IndexModel([("unfinished", ASCENDING)], sparse=True)
        await self._database.ensure("removed_runs", [unfinished], ["time"])
        due = IndexModel([("due_time", ASCENDING)])
        await self._database.ensure("blob_releases", [due], ["due_time"])
        await self._database.ensure("snapshot_releases", [due], ["due_time"])
        uses = [IndexModel([(key, ASCENDING)], sparse=True) for key in ("workload.snapshot", "git.patch")]
        await self._raw["runs"].create_indexes(uses)

    async def ended(self, experiment: str) -> list[domain.Ended]:
        """The runs of an experiment that have ended."""
        where = {"experiment": experiment, "state": {"$in": _TERMINAL}}
        shown = {"create_time": 1, "end_time": 1, "archive_time": 1}
        return [
            domain.Ended(d["_id"], d["create_time"], d.get("end_time", d["create_time"]), "archive_time" in d)
            async for d in self._raw["runs"].find(where, shown)
        ]

    async def children(self, run: str) -> AsyncIterator[str]:
        """The names of its children."""
        async for document in self._raw["runs"].find({"parent_run": run}, {"_id": 1}):
            yield document["_id"]

    async def is_over(self, run: str) -> bool | None:
        """Whether the run has ended; None for one that was removed. Raises `NotFound`."""
        try:
            return await self._runs.is_over(run)
        except NotFound:
            if await self._removed.find_one({"_id": run}, {"_id": 1}) is None:
                raise
            return None

    async def size(self, run: str) -> Size:
        """What its metrics and logs take."""
        return Size(
            await self._sum("metric_series", "$count", run), await self._sum("logs", "$size_bytes", run)
        )

    async def _sum(self, collection: str, field: str, run: str) -> int:
        pipeline: list[Document] = [
            {"$match": {"_id": {"$gt": f"{run}#", "$lt": f"{run}$"}}},
            {"$group": {"_id": None, "sum": {"$sum": field}}},
        ]
        return sum([int(document["sum"]) async for document in self._raw[collection].aggregate(pipeline)])

    async def mark(self, name: str, size: Size) -> None:
        """Removes the run for all who look; raises `FailedPrecondition` when it may not go."""

        async def work(tx: Transaction) -> None:
            run = await self._runs.runs.find(name, tx.session)
            if run is None:
                return
            if not states.is_terminal(run.state):
                raise domain.not_over(name)
            child = await self._raw["runs"].find_one({"parent_run": name}, {"_id": 1}, session=tx.session)
            if child is not None:
                raise domain.has_children(name, child["_id"])
            await self._raw["runs"].delete_one({"_id": name}, session=tx.session)
            moment = datetime.now(UTC)
            left = {"time": moment, "unfinished": True, "snapshot": run.workload.snapshot}
            await self._removed.insert_one({"_id": name, **left, "patch": run.git.patch}, session=tx.session)
            await self._close(tx, name, moment)
            await self._runs.search.remove([name], tx.session)
            stamp(run)
            text = f"Removed with {size.points:,} points and {size.log_bytes:,} bytes of logs."
            tx.record(run, Fact("removed", "REQUESTED", text))

        await self._database.commit(work)
        failpoints.hit("removal.marked")

    async def _close(self, tx: Transaction, run: str, moment: datetime) -> None:
        """Lets the writer drop what comes from now on; it changes the same documents in its transactions."""
        for kind in STREAMS:
            await self._raw["ingest_heads"].update_one(
                {"_id": f"{kind}#{run}"},
                {"$set": {"removed_time": moment}, "$inc": {"version": 1}, "$unset": {"unprojected": ""}},
                upsert=True,
                session=tx.session,
            )

    async def unfinished(self) -> list[str]:
        """Runs that are marked and not deleted yet."""
        found = self._removed.find({"unfinished": True}, {"_id": 1}).sort("_id", ASCENDING).limit(_BATCH)
        return [document["_id"] async for document in found]

    async def delete(self, run: str) -> None:
        """Deletes all that is left of a marked run; again, it goes on where it was."""
        mark = await self._removed.find_one({"_id": run})
        if mark is None or not mark.get("unfinished"):
            return
        for collection in _BY_PREFIX:
            await self._raw[collection].delete_many({"_id": {"$gt": f"{run}#", "$lt": f"{run}$"}})
            failpoints.hit("removal.deleting")
        for collection in _BY_NAME:
            await self._raw[collection].delete_one({"_id": run})
        await self._raw["ingest_early"].delete_many({"run": run})
        await self._delete_artifacts(run)
        workspace = f"workspaces/{names.workspace_of(run)}"
        if mark.get("patch"):
            await self.give_up_blobs(workspace, [mark["patch"]])
        if mark.get("snapshot"):
            await self._snapshots.update_one(
                {"_id": mark["snapshot"]}, {"$set": {"due_time": datetime.now(UTC)}}, upsert=True
            )
        failpoints.hit("removal.deleted")
        await self._removed.update_one(
            {"_id": run}, {"$unset": {"unfinished": "", "snapshot": "", "patch": ""}}
        )

    async def _delete_artifacts(self, run: str) -> None:
        artifacts = self._raw["artifacts"]
        where = {"_id": {"$gt": f"{run}#", "$lt": f"{run}$"}}
        workspace = f"workspaces/{names.workspace_of(run)}"
        while documents := await artifacts.find(where, {"sha256": 1}).limit(_BATCH).to_list(_BATCH):
            # Remembered before they are forgotten.
            await self.give_up_blobs(workspace, [document["sha256"] for document in documents])
            await artifacts.delete_many({"_id": {"$in": [document["_id"] for document in documents]}})
        await self._raw["artifact_lists"].delete_one({"_id": f"{run}/artifacts"})

    async def give_up_blobs(self, workspace: str, digests: Sequence[str]) -> None:
        """Remembers blobs to be released when nothing here refers to them."""
        moment = datetime.now(UTC)
        writes = [
            UpdateOne({"_id": f"{workspace}/blobs/{digest}"}, {"$set": {"due_time": moment}}, upsert=True)
            for digest in set(digests)
            if digest
        ]
        if writes:
            await self._blobs.bulk_write(writes, ordered=False)

    async def due_blobs(self, most: int) -> dict[str, list[str]]:
        """Digests to be released now, by workspace."""
        found: dict[str, list[str]] = {}
        async for document in self._blobs.find({"due_time": {"$lte": datetime.now(UTC)}}).limit(most):
            workspace, _, digest = document["_id"].rpartition("/blobs/")
            found.setdefault(workspace, []).append(digest)
        return found

    async def settle_blobs(
        self, workspace: str, digests: Sequence[str], later: Mapping[str, datetime]
    ) -> None:
        """Forgets what is settled, and asks again for the others at their time.

        Among those may be the packs in which blobs lay that are gone.
        """
        for start in range(0, len(digests), _BATCH):
            some = digests[start : start + _BATCH]
            gone = [f"{workspace}/blobs/{digest}" for digest in some if digest not in later]
            await self._blobs.delete_many({"_id": {"$in": gone}})
        writes = [
            UpdateOne({"_id": f"{workspace}/blobs/{digest}"}, {"$set": {"due_time": moment}}, upsert=True)
            for digest, moment in later.items()
        ]
        if writes:
            await self._blobs.bulk_write(writes, ordered=False)

    async def due_snapshots(self) -> list[str]:
        """Snapshots that a removed run used, to be looked at now."""
        found = self._snapshots.find({"due_time": {"$lte": datetime.now(UTC)}}, {"_id": 1}).limit(_BATCH)
        return [document["_id"] async for document in found]

    async def settle_snapshot(self, name: str, due_time: datetime | None) -> None:
        """Forgets the snapshot, or looks at it again later."""
        if due_time is None:
            await self._snapshots.delete_one({"_id": name})
        else:
            await self._snapshots.update_one({"_id": name}, {"$set": {"due_time": due_time}})

    async def snapshots_of(self, runs: Sequence[str]) -> list[str]:
        """The snapshots that the runs use."""
        found = self._raw["runs"].find({"_id": {"$in": list(runs)}}, {"workload.snapshot": 1})
        return sorted(
            {d["workload"]["snapshot"] async for d in found if d.get("workload", {}).get("snapshot")}
        )

    async def uses(self, snapshot: str, without: Sequence[str] = ()) -> bool:
        """Whether a run, other than those named, uses the snapshot."""
        where: dict[str, Any] = {"workload.snapshot": snapshot}
        if without:
            where["_id"] = {"$nin": list(without)}
        return await self._raw["runs"].find_one(where, {"_id": 1}) is not None
