"""Snapshots in MongoDB."""

from pymongo import ASCENDING, IndexModel

from stellwerk_platform.errors import NotFound
from stellwerk_platform.mongo import Collection, Database
from stellwerk_protos.runs.v1.snapshots_pb2 import Snapshot


class SnapshotStore(Collection[Snapshot]):
    """The snapshots; they never change."""

    def __init__(self, database: Database) -> None:
        by_blob = IndexModel([("files.sha256", ASCENDING)])
        super().__init__(database, "snapshots", Snapshot, indexes=[by_blob])

    async def check(self, name: str) -> None:
        """Raises `NotFound` unless the snapshot exists."""
        if await self.raw.find_one({"_id": name}, {"_id": 1}) is None:
            raise NotFound(
                "SNAPSHOT_NOT_FOUND", f"There is no snapshot {name}.", "Call CreateSnapshot before CreateRun."
            )
