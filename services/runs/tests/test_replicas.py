"""Several writers share the work of one run, each in its own order."""

import asyncio
import random

from services.runs.tests.support import Platform, ingest_store, metrics, points, text
from stellwerk_platform.mongo import Database
from stellwerk_runs.ingest.domain import LOGS, METRICS
from stellwerk_runs.ingest.store import Message
from stellwerk_runs.logs.store import LogStore
from stellwerk_runs.metrics.store import MetricStore

RUN = "workspaces/none/runs/shared"


async def write_all(database: Database, messages: list[Message], chance: random.Random) -> None:
    """One replica: batches of any size, one after the other."""
    store = ingest_store(database)
    while messages:
        size = chance.randrange(1, 6)
        batch, messages[:size] = messages[:size], []
        for kind, field in ((METRICS, "metrics"), (LOGS, "log")):
            some = [message for message in batch if message.piece.WhichOneof("payload") == field]
            assert not await store.write(kind, RUN, some)


async def test_writers_of_one_run_wait_for_each_other(platform: Platform) -> None:
    whole = points([float(n) for n in range(600)])
    data = bytes(n % 256 for n in range(6_000))
    everything = [metrics(RUN, "loss", whole.slice(n, n + 10), n) for n in range(0, 600, 10)]
    everything += [text(RUN, data[n : n + 100], n) for n in range(0, 6_000, 100)]
    messages = [Message(str(n), piece) for n, piece in enumerate(everything)]
    settings, chance = platform.settings, random.Random(2)
    databases = [Database(settings.mongodb_uri, settings.namespace, "runs") for _ in range(3)]
    # Each message reaches two of the replicas.
    shares = [
        chance.sample([*messages[n::3], *messages[(n + 1) % 3 :: 3]], len(messages) * 2 // 3)
        for n in range(3)
    ]
    await asyncio.gather(*(write_all(*pair, chance) for pair in zip(databases, shares, strict=True)))
    store, logs = MetricStore(databases[0]), LogStore(databases[0])
    assert await store.history(RUN, "loss", 0, 1_000) == (whole, False)
    assert b"".join([part.data async for part in logs.read(RUN, "user_logs/std_log.txt", 0)]) == data
    assert await databases[0].raw["ingest_early"].count_documents({"run": RUN}) == 0
    for database in databases:
        database.close()
