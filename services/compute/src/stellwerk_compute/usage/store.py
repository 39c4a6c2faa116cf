"""What each workspace has used of CPU, in MongoDB: one document a workspace."""

from stellwerk_platform.mongo import Database, Transaction


class UsageStore:
    """The collection `usage`; `_id` is `workspaces/demo`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._raw = database.raw["usage"]

    async def open(self) -> None:
        """Creates the collection."""
        await self._database.ensure("usage", required=["cpu_seconds"])

    async def add_in(self, tx: Transaction, workspace: str, cpu_seconds: float) -> None:
        """Adds what was used since the last time, in the caller's transaction."""
        await self._raw.update_one(
            {"_id": workspace}, {"$inc": {"cpu_seconds": cpu_seconds}}, upsert=True, session=tx.session
        )

    async def cpu_seconds(self, workspace: str) -> float:
        """Seconds of CPU since the workspace was made."""
        document = await self._raw.find_one({"_id": workspace})
        return 0.0 if document is None else float(document["cpu_seconds"])
