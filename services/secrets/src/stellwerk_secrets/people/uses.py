"""When keys were last used: to the minute, written in batches, in no event."""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from pymongo import UpdateOne

from stellwerk_platform.errors import as_platform_error
from stellwerk_platform.mongo import Database

log = logging.getLogger(__name__)
_WRITE_SECONDS = 5.0


class Uses:
    """What was noted and is not written yet is lost when the process is killed: some seconds of it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._raw = database.raw["key_uses"]
        self._noted: dict[str, datetime] = {}
        self._written: dict[str, datetime] = {}

    async def open(self) -> None:
        """Creates the collection."""
        await self._database.ensure("key_uses", required=["time"])

    def note(self, key: str) -> None:
        """A key was used now."""
        minute = datetime.now(UTC).replace(second=0, microsecond=0)
        if self._written.get(key) != minute:
            self._noted[key] = minute

    async def run(self) -> None:
        """Writes for ever."""
        while True:
            await asyncio.sleep(_WRITE_SECONDS)
            try:
                await self.write()
            except Exception as error:
                log.warning("When keys were used is written later: %.300s", as_platform_error(error) or error)

    async def write(self) -> None:
        """Writes what was noted."""
        noted, self._noted = self._noted, {}
        if not noted:
            return
        writes = [UpdateOne({"_id": k}, {"$max": {"time": t}}, upsert=True) for k, t in noted.items()]
        try:
            await self._raw.bulk_write(writes, ordered=False)
        except BaseException:
            self._noted = noted | self._noted
            raise
        self._written = noted

    async def of(self, keys: Iterable[str]) -> Mapping[str, datetime]:
        """By key, when it was last used; keys that never were are left out."""
        await self.write()
        found = self._raw.find({"_id": {"$in": list(keys)}})
        return {document["_id"]: document["time"] async for document in found}
