"""Keys of programs of the platform itself, by digest: they belong to no person, and no call changes them."""

from datetime import UTC

from stellwerk_platform.documents import now
from stellwerk_platform.mongo import Database
from stellwerk_secrets.domain import Identity

_COLLECTION = "service_keys"


class ServiceKeys:
    """Which digest belongs to whom."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._raw = database.raw[_COLLECTION]

    async def open(self) -> None:
        """Creates the collection."""
        await self._database.ensure(_COLLECTION, required=["subject", "role", "create_time"])

    async def find(self, digest: str) -> Identity | None:
        """Whom the key with this digest stands for."""
        document = await self._raw.find_one({"_id": digest})
        return None if document is None else Identity(document["subject"], document["role"])

    async def install(self, identity: Identity, digest: str) -> None:
        """Makes this the one key that `identity` was given at the start; an earlier one ends. "" is none."""
        installed = {"subject": identity.subject, "installed": True}
        if digest:
            change = {
                "$set": {**installed, "role": identity.role},
                "$setOnInsert": {"create_time": now().ToDatetime(UTC)},
            }
            await self._raw.update_one({"_id": digest}, change, upsert=True)
        await self._raw.delete_many({**installed, "_id": {"$ne": digest}})
