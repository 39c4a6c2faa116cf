"""Changes of what is stored already: numbered, forward only, each once.

A migration that dies half-way is run again, so it must be harmless to repeat; two
replicas that start together may both run it.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence

from stellwerk_platform.mongo import Database

log = logging.getLogger(__name__)
Migration = Callable[[], Awaitable[None]]
_COLLECTION = "migrations"
_ID = "last"


async def migrate(database: Database, migrations: Sequence[Migration]) -> None:
    """Runs those that have not run on this database yet; the first one is number 1."""
    await database.ensure(_COLLECTION)
    found = await database.raw[_COLLECTION].find_one({"_id": _ID})
    done = 0 if found is None else int(found["number"])
    for number, migration in enumerate(migrations[done:], done + 1):
        log.info("Migration %d of %s", number, database.service)
        await migration()
        await database.raw[_COLLECTION].update_one({"_id": _ID}, {"$max": {"number": number}}, upsert=True)
