"""Snapshots in MongoDB."""

from stellwerk_platform.errors import NotFound
from stellwerk_platform.mongo import Collection, Database
from stellwerk_protos.runs.v1.snapshots_pb2 import Snapshot


class SnapshotStore(Collection[Snapshot]):
    """The snapshots; they never change."""

    def __init__(self, database: Database) -> None:
        super().__init__(database, "snapshots", Snapshot)

    async def check(self, name: str) -> None:
        """Raises `NotFound` unless the snapshot exists."""
        if await self.raw.find_one({"_id": name}, {"_id": 1}) is None:
            raise NotFound(
                "SNAPSHOT_NOT_FOUND", f"There is no snapshot {name}.", "Call CreateSnapshot before CreateRun."
            )
