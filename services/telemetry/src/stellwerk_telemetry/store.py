"""What the projections of `telemetry` share in MongoDB."""

from collections.abc import Sequence

from motor.motor_asyncio import AsyncIOMotorCollection
from pymongo.errors import BulkWriteError

from stellwerk_platform.documents import Document

_DUPLICATE_KEY = 11_000


async def insert_missing(collection: AsyncIOMotorCollection, documents: Sequence[Document]) -> None:
    """Stores documents; one that is there already stays as it is.

    Raises `BulkWriteError` for any other refusal.
    """
    try:
        await collection.insert_many(documents, ordered=False)
    except BulkWriteError as error:
        if any(e["code"] != _DUPLICATE_KEY for e in (error.details or {}).get("writeErrors", [])):
            raise
