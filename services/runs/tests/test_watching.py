"""What a watcher of very many metrics costs the store."""

import uuid

import pytest
from pymongo import MongoClient

from services.runs.tests.support import points
from stellwerk_launcher.testing import Servers
from stellwerk_platform.mongo import Database
from stellwerk_runs.metrics import store as metric_store
from stellwerk_runs.metrics.domain import Chunk, unpack
from stellwerk_runs.metrics.store import MetricStore, Position

RUN = "workspaces/demo/runs/wide"
NAMES = 1_500


def chunks(version: int) -> list[Chunk]:
    """Every metric with one point a version."""
    marks = tuple((number, number) for number in range(1, version + 1))
    return [Chunk(f"m{name:05d}", 0, points([float(version)] * version), marks) for name in range(NAMES)]


@pytest.mark.parametrize("keys", [metric_store._KEYS, 100])
async def test_a_watcher_reads_each_new_chunk_once_however_many_metrics_there_are(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, keys: int
) -> None:
    monkeypatch.setattr(metric_store, "_KEYS", keys)
    database = Database(servers.mongodb_uri, f"t{uuid.uuid4().hex[:8]}", "runs")
    store = MetricStore(database)
    await store.open()
    documents = [metric_store._from_chunk(RUN, chunk) for chunk in chunks(2)]
    await database.raw["metric_chunks"].insert_many(documents)
    await database.raw.command("profile", 2)
    found: dict[str, list[int]] = {}
    position = Position(since=1)
    async for columns, reached in store.after(RUN, position, 2):
        position = reached
        for column in columns:
            found.setdefault(column.metric, []).append(column.first_sequence)
    await database.raw.command("profile", 0)
    assert position == Position(since=2)
    assert found == {f"m{name:05d}": [1] for name in range(NAMES)}, "no gap, no repeat, only what is new"
    with MongoClient[dict[str, int]](servers.mongodb_uri) as client:
        profile = client[database.raw.name]["system.profile"]
        looks = list(profile.find({"ns": f"{database.raw.name}.metric_chunks"}))
    examined = sum(look.get("docsExamined", 0) for look in looks)
    assert NAMES <= examined <= NAMES + 64
    assert sum(look.get("keysExamined", 0) for look in looks) <= 3 * NAMES + 500
    assert list(unpack("d", column.values)) == [2.0]
    await database.client.drop_database(database.raw.name)
    database.close()


async def test_a_watcher_goes_on_after_any_piece(servers: Servers) -> None:
    database = Database(servers.mongodb_uri, f"t{uuid.uuid4().hex[:8]}", "runs")
    store = MetricStore(database)
    await store.open()
    documents = [metric_store._from_chunk(RUN, chunk) for chunk in chunks(2)]
    await database.raw["metric_chunks"].insert_many(documents)
    found: list[str] = []
    position = Position(since=1)
    while position != Position(since=2):
        # One piece, then another connection.
        columns, position = await anext(store.after(RUN, position, 2))
        found += [column.metric for column in columns]
    assert found == [f"m{name:05d}" for name in range(NAMES)]
    await database.client.drop_database(database.raw.name)
    database.close()
