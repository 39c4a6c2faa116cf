"""Which blobs runs, artifacts and snapshots refer to, and which nothing would refer to any more."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from stellwerk_platform import names
from stellwerk_platform.documents import Document
from stellwerk_platform.errors import ResourceExhausted
from stellwerk_platform.mongo import Database
from stellwerk_protos.runs.v1.snapshots_pb2 import Manifest, Snapshot
from stellwerk_runs.snapshots.domain import MANIFEST_BYTES
from stellwerk_runs.snapshots.store import SnapshotStore
from stellwerk_runs.upstream import Registry

_BATCH = 1_000
_MOST = 2_000_000


@dataclass
class Leaving:
    """What is about to go."""

    runs: list[str] = field(default_factory=list)
    snapshots: list[str] = field(default_factory=list)


class References:
    """Reads, never writes."""

    def __init__(self, database: Database, snapshots: SnapshotStore, registry: Registry) -> None:
        self._raw = database.raw
        self._snapshots = snapshots
        self._registry = registry

    async def blobs_of(self, leaving: Leaving) -> set[str]:
        """Digests that the runs and snapshots refer to; raises `ResourceExhausted` for too many."""
        digests: set[str] = set()
        for run in leaving.runs:
            where = {"_id": {"$gt": f"{run}#", "$lt": f"{run}$"}}
            async for document in self._raw["artifacts"].find(where, {"sha256": 1}):
                digests.add(document["sha256"])
            _check(digests)
        found = self._raw["runs"].find({"_id": {"$in": leaving.runs}}, {"git.patch": 1})
        digests |= {document.get("git", {}).get("patch", "") async for document in found}
        for name in leaving.snapshots:
            if (snapshot := await self._snapshots.find(name)) is not None:
                digests |= await self.blobs_of_snapshot(snapshot)
                _check(digests)
        return digests - {""}

    async def blobs_of_snapshot(self, snapshot: Snapshot) -> set[str]:
        """Digests of its files, and of its manifest."""
        if not snapshot.manifest:
            return {file.sha256 for file in snapshot.files if file.sha256}
        workspace = names.parent_of(snapshot.name)
        body = await self._registry.read_blob(workspace, snapshot.manifest, MANIFEST_BYTES)
        return {snapshot.manifest} | await asyncio.to_thread(_digests, body)

    async def unreferenced(self, workspace: str, digests: Iterable[str], leaving: Leaving) -> set[str]:
        """Those to which nothing refers but what is leaving."""
        free = set(digests)
        ordered = list(free)
        for start in range(0, len(ordered), _BATCH):
            some = ordered[start : start + _BATCH]
            free -= await self._artifacts(workspace, some, leaving.runs)
            free -= await self._runs(workspace, some, leaving.runs)
            free -= await self._listed(workspace, some, leaving.snapshots)
        if free:
            # Manifests are read once for all digests: each may be large.
            where = {**_inside(f"{workspace}/snapshots"), "manifest": {"$exists": True}}
            async for document in self._raw["snapshots"].find(where, {"manifest": 1}):
                if document["_id"] not in leaving.snapshots:
                    snapshot = Snapshot(name=document["_id"], manifest=document["manifest"])
                    free -= await self.blobs_of_snapshot(snapshot)
        return free

    async def _artifacts(self, workspace: str, digests: Sequence[str], runs: Sequence[str]) -> set[str]:
        run = {"$arrayElemAt": [{"$split": ["$_id", "#"]}, 0]}
        pipeline: list[Document] = [
            {"$match": {"sha256": {"$in": list(digests)}, **_inside(f"{workspace}/runs")}},
            {"$project": {"sha256": 1, "run": run}},
            {"$match": {"run": {"$nin": list(runs)}}},
            {"$group": {"_id": "$sha256"}},
        ]
        return {document["_id"] async for document in self._raw["artifacts"].aggregate(pipeline)}

    async def _runs(self, workspace: str, digests: Sequence[str], runs: Sequence[str]) -> set[str]:
        where = {"git.patch": {"$in": list(digests)}, "_id": {"$nin": list(runs)}}
        found = self._raw["runs"].find(where, {"git.patch": 1})
        inside = f"{workspace}/runs/"
        return {d["git"]["patch"] async for d in found if d["_id"].startswith(inside)}

    async def _listed(self, workspace: str, digests: Sequence[str], snapshots: Sequence[str]) -> set[str]:
        pipeline: list[Document] = [
            {"$match": {"files.sha256": {"$in": list(digests)}, **_inside(f"{workspace}/snapshots")}},
            {"$match": {"_id": {"$nin": list(snapshots)}}},
            {"$project": {"files.sha256": 1}},
            {"$unwind": "$files"},
            {"$match": {"files.sha256": {"$in": list(digests)}}},
            {"$group": {"_id": "$files.sha256"}},
        ]
        return {document["_id"] async for document in self._raw["snapshots"].aggregate(pipeline)}


def _inside(folder: str) -> Document:
    # "0" follows "/".
    return {"_id": {"$gt": f"{folder}/", "$lt": f"{folder}0"}}


def _digests(body: bytes) -> set[str]:
    return {file.sha256 for file in Manifest.FromString(body).files if file.sha256}


def _check(digests: set[str]) -> None:
    if len(digests) > _MOST:
        raise ResourceExhausted(
            "TOO_MANY_BLOBS", f"The runs refer to more than {_MOST:,} blobs.", "Remove fewer runs at a time."
        )
