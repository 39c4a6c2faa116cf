"""A workspace from its making to its deletion, and its limits, with the command line on a whole stack."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from stellwerk_platform.auth import StaticCredentials
from stellwerk_platform.errors import from_rpc
from stellwerk_platform.grpc_client import connect
from stellwerk_protos.runs.v1 import ingest_pb2, ingest_pb2_grpc
from tests.system.support import Cli

pytestmark = pytest.mark.slow
BUSY = "python -c 'while True: pass'"
ENDLESS = "sleep 600"


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "hello.py").write_text(
        "print('hello from', __import__('os').environ['STELLWERK_WORKSPACE'])\n"
    )
    return tmp_path


def new(stack: dict[str, Any], name: str) -> Cli:
    made = Cli.of(stack, name)
    made.ok("workspace", "create", name)
    return made


def submit(user: Cli, code: Path, name: str, command: str = "python hello.py") -> None:
    user.ok("run", "submit", code, "--name", name, "--command", command, "--detach")


def until(condition: Callable[[], bool], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.2)


def reason(user: Cli, run: str) -> str:
    return str(user.json("run", "show", run)["reason"]["code"])


def ended(user: Cli, run: str) -> bool:
    return str(user.json("run", "show", run)["state"]).endswith(("COMPLETED", "CANCELED", "FAILED"))


@pytest.mark.timeout(600)
def test_a_deleted_workspace_leaves_nothing_to_one_of_the_same_name(
    stack: dict[str, Any], code: Path, tmp_path: Path
) -> None:
    user, neighbour = new(stack, "gone"), new(stack, "gone-b")
    for one in (user, neighbour):
        submit(one, code, "first")
    for one in (user, neighbour):
        until(lambda one=one: ended(one, "first"))  # type: ignore[misc]
    user.ok("quota", "set", "--cores", "7")
    (tmp_path / "value").write_text("s3cr3t")
    user.ok("secret", "set", "key", "--file", tmp_path / "value")
    user.ok("endpoint", "create", "scoring")
    submit(user, code, "long", ENDLESS)
    until(lambda: reason(user, "long") == "COMMAND_RUNNING")

    refused = user.run("workspace", "delete", "gone")
    refused.check_clear("WORKSPACE_IN_USE", 1, "endpoints/scoring, runs/long")
    asked = user.run("workspace", "delete", "gone", "--force")
    asked.check_clear("CONFIRMATION_MISSING", 2, "runs", "secrets", "lives: runs/long")
    removed = user.json("workspace", "delete", "gone", "--force", "--yes")
    assert int(removed["removed"]["runs"]["counts"]["runs"]) == 2
    assert int(removed["removed"]["inference"]["counts"]["endpoints"]) == 1
    assert int(removed["removed"]["secrets"]["counts"]["secrets"]) == 1
    assert int(removed["removed"]["registry"]["counts"]["blobs"]) >= 1
    # The same answer as for one that never was.
    user.run("workspace", "show", "gone").check_clear("PERMISSION_DENIED", 4)

    again = new(stack, "gone")
    events = again.json("events", "list")
    assert {event["type"].split(".")[3] for event in events} <= {"created", "added"}, events
    assert again.json("run", "list") == []
    assert again.json("secret", "list") == []
    assert again.json("endpoint", "list") == []
    quota = again.json("quota", "show")
    assert not quota.get("limits")
    assert int(quota["used"]["storageBytes"]) == 0
    # The same names, and the same content, once more.
    submit(again, code, "first")
    until(lambda: ended(again, "first"))
    for one, name in ((again, "gone"), (neighbour, "gone-b")):
        assert f"hello from workspaces/{name}" in one.ok("run", "logs", "first")
    neighbour.ok("workspace", "delete", "gone-b", "--yes")
    again.ok("workspace", "delete", "gone", "--yes")


@pytest.mark.timeout(600)
def test_limits_hold_back_or_refuse_and_say_which_and_how_much(
    stack: dict[str, Any], code: Path, tmp_path: Path
) -> None:
    user, neighbour = new(stack, "limited"), new(stack, "unlimited")
    user.ok("quota", "set", "--cores", "1")
    submit(user, code, "one", BUSY)
    until(lambda: reason(user, "one") == "COMMAND_RUNNING")
    submit(user, code, "two")
    until(lambda: reason(user, "two") == "QUOTA_CORES")
    shown = user.json("run", "show", "two")["reason"]
    assert "may use 1 cores" in shown["message"]
    assert "quota set --cores" in shown["cure"]
    # Another workspace is not held up by it.
    submit(neighbour, code, "free")
    until(lambda: ended(neighbour, "free"))

    # What a run has used so far counts while it runs, and the end of it makes room.
    until(lambda: int(user.json("quota", "show")["used"]["cpuSeconds"]) >= 1)
    user.ok("quota", "set", "--cpu-hours", "0.0001")
    over = user.run("run", "submit", code, "--name", "three", "--detach")
    over.check_clear("QUOTA_CPU_SECONDS_EXCEEDED", 1, "budget of limited")
    user.ok("run", "cancel", "one")
    until(lambda: ended(user, "two"))
    user.ok("quota", "set", "--cpu-hours", "0", "--cores", "0")

    user.ok("quota", "set", "--storage", "10kB")
    large = tmp_path / "large.bin"
    large.write_bytes(bytes(range(256)) * 100)
    full = user.run("dataset", "create", "large", large)
    full.check_clear("QUOTA_STORAGE_EXCEEDED", 1, "10,000 bytes", "25,600 more")
    table = user.ok("workspace", "show", "limited")
    assert "9.8 KiB" in table
    for one in ("limited", "unlimited"):
        user.ok("workspace", "delete", one, "--force", "--yes")


async def test_what_an_agent_still_says_about_a_deleted_workspace_is_refused(
    stack: dict[str, Any], owner_key: str
) -> None:
    user = new(stack, "late")
    user.ok("workspace", "delete", "late", "--yes")
    async with connect(stack["grpc_address"], StaticCredentials(owner_key)) as channel:
        stub = ingest_pb2_grpc.IngestServiceStub(channel)
        chunk = ingest_pb2.LogChunk(log="user_logs/std_log.txt", data=b"late\n")
        request = ingest_pb2.AppendRequest(run="workspaces/late/runs/r", batch=1, log=chunk)

        async def requests() -> Any:
            yield request

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.Append(requests()):
                pass
    assert from_rpc(caught.value).reason in ("RUN_NOT_FOUND", "PERMISSION_DENIED")


def test_the_default_datastore_is_replaced_with_the_command_line(
    stack: dict[str, Any], tmp_path: Path
) -> None:
    user = new(stack, "stores")
    (tmp_path / "old.csv").write_text("1,2\n")
    (tmp_path / "new.csv").write_text("3,4\n")
    user.ok("dataset", "create", "old", tmp_path / "old.csv")
    user.ok("datastore", "create", "fast", "--prefix", "nvme", "--description", "fast disks")
    user.run("datastore", "delete", "workspacedefault").check_clear("DATASTORE_IS_DEFAULT", 1)
    user.ok("workspace", "update", "stores", "--default-datastore", "fast", "--tag", "cost=42")
    shown = user.json("workspace", "show", "stores")
    assert (shown["defaultDatastore"].endswith("/fast"), shown["tags"]) == (True, {"cost": "42"})
    user.ok("dataset", "create", "new", tmp_path / "new.csv")
    user.run("datastore", "delete", "workspacedefault").check_clear("DATASTORE_IN_USE", 1)
    assert "fast disks" in user.ok("datastore", "list")
    assert json.loads(user.ok("datastore", "show", "fast", "-o", "json"))["prefix"] == "stores/nvme"
    user.ok("workspace", "delete", "stores", "--yes")
