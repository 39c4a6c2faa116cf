"""Logs of replicas: bounded, and readable until well after the end."""

import pytest

from services.runs.tests.support import Platform, ingest_store, text
from stellwerk_platform.mongo import Database
from stellwerk_runs.ingest.domain import LOGS
from stellwerk_runs.ingest.store import Message
from stellwerk_runs.logs import store as log_store
from stellwerk_runs.logs.store import LogStore
from stellwerk_runs.retention.holds import targets_of

REPLICA = "workspaces/none/endpoints/e/deployments/d/replicas/r1"
LOG = "user_logs/std_log.txt"
PIECE = 256 * 1024


async def test_of_a_replicas_log_the_last_part_stays(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_store, "REPLICA_BYTES", 2 * PIECE)
    database = Database(platform.settings.mongodb_uri, platform.settings.namespace, "runs")
    store, logs = ingest_store(database), LogStore(database)
    whole = b"".join(bytes([65 + number]) * PIECE for number in range(12))
    for number in range(12):
        piece = text(REPLICA, whole[number * PIECE : (number + 1) * PIECE], number * PIECE)
        assert not await store.write(LOGS, REPLICA, [Message(str(number), piece)])
    begin = await logs.begin(REPLICA, LOG)
    kept = b"".join([part.data async for part in logs.read(REPLICA, LOG, begin)])
    assert kept == whole[begin:]
    assert 2 * PIECE <= len(kept) < len(whole)
    assert await database.raw["log_chunks"].find_one({"run": REPLICA, "expire_time": {"$exists": True}})
    database.close()


def test_a_deployment_holds_the_code_of_all_rollouts() -> None:
    rollouts = [{"workload": {"snapshot": name}} for name in ("a", "b")]
    assert targets_of({"workload": {"snapshot": "b"}, "rollouts": rollouts}) == ["a", "b"]
    assert targets_of({"run": "r"}) == ["r"]
