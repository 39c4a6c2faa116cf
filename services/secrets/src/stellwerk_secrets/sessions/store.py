"""Which ID tokens were used: each gives one session."""

from datetime import UTC, datetime

from pymongo import ASCENDING, IndexModel
from pymongo.errors import DuplicateKeyError

from stellwerk_platform.errors import Unauthenticated
from stellwerk_platform.mongo import Database

_COLLECTION = "used_id_tokens"


class UsedTokens:
    """By digest, until each would be refused as expired."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._raw = database.raw[_COLLECTION]

    async def open(self) -> None:
        """Creates the collection."""
        ends = IndexModel([("expire_time", ASCENDING)], name="expire_time", expireAfterSeconds=0)
        await self._database.ensure(_COLLECTION, [ends], required=["expire_time"])

    async def use(self, digest: str, expire_time: int) -> None:
        """Raises `Unauthenticated` for one that was used before."""
        try:
            await self._raw.insert_one(
                {"_id": digest, "expire_time": datetime.fromtimestamp(expire_time, UTC)}
            )
        except DuplicateKeyError:
            raise Unauthenticated(
                "ID_TOKEN_USED", "The ID token was used before.", "Sign in again: stellwerk login."
            ) from None
