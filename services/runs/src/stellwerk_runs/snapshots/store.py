"""Snapshots in MongoDB."""

from datetime import UTC, datetime

from pymongo import ASCENDING, IndexModel

from stellwerk_platform.errors import NotFound
from stellwerk_platform.mongo import Collection, Database, Transaction
from stellwerk_protos.runs.v1.snapshots_pb2 import Snapshot


class SnapshotStore(Collection[Snapshot]):
    """The snapshots; they never change."""

    def __init__(self, database: Database) -> None:
        by_blob = IndexModel([("files.sha256", ASCENDING)])
        super().__init__(database, "snapshots", Snapshot, indexes=[by_blob])

    async def check(self, name: str) -> None:
        """Raises `NotFound` unless the snapshot exists; it stays for the grace time from now."""
        if not await self.touch(name):
            raise NotFound(
                "SNAPSHOT_NOT_FOUND", f"There is no snapshot {name}.", "Call CreateSnapshot before CreateRun."
            )

    async def touch(self, name: str) -> bool:
        """Notes that somebody is about to use the snapshot; False when there is none."""
        result = await self.raw.update_one({"_id": name}, {"$set": {"used_time": datetime.now(UTC)}})
        return result.matched_count > 0

    async def delete_unused_in(self, tx: Transaction, name: str, limit: datetime) -> bool:
        """Deletes the snapshot unless it was made or anybody asked for it after `limit`."""
        where = {"_id": name, "create_time": {"$lt": limit}, "used_time": {"$not": {"$gte": limit}}}
        result = await self.raw.delete_one(where, session=tx.session)
        return result.deleted_count > 0
