"""What those who run and watch Stellwerk rely on: doctor, events across restarts, subscribers, the log.

The stack is this module's own, because its parts are frozen and killed.
"""

import asyncio
import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nats.errors
import pytest
from nats.aio.client import Client as Nats

from stellwerk import Client
from stellwerk_launcher.testing import StackProcess
from tests.system.support import Cli

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
WORKSPACE = "watched"


@pytest.fixture(scope="module")
def own_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackProcess]:
    with StackProcess(tmp_path_factory.mktemp("operations") / "data") as process:
        yield process


@pytest.fixture(scope="module")
def cli(own_stack: StackProcess) -> Cli:
    cli = Cli.of(own_stack.status(), WORKSPACE).with_(STELLWERK_DATA_DIR=str(own_stack.data_dir))
    cli.ok("workspace", "create", WORKSPACE)
    return cli


@contextmanager
def frozen(stack: StackProcess, *names: str) -> Iterator[None]:
    """Processes that are there and do not answer."""
    for name in names:
        stack.kill(name, signal.SIGSTOP)
    try:
        yield
    finally:
        for name in names:
            stack.kill(name, signal.SIGCONT)


def failures(cli: Cli) -> dict[tuple[str, str], dict[str, Any]]:
    """What the doctor finds wrong, by service and part."""
    outcome = cli.run("doctor", "--output", "json")
    found = json.loads(outcome.out)
    assert outcome.code == (0 if found["ok"] else 1)
    assert found["ok"] == all(check["ok"] for check in found["checks"])
    wrong = [check for check in found["checks"] if not check["ok"]]
    assert all(check["reason"] and check["cause"] and check["cure"] for check in wrong), wrong
    return {(check["service"], check["part"]): check for check in wrong}


def test_all_is_well(cli: Cli) -> None:
    assert failures(cli) == {}
    out = cli.ok("doctor", "--verbose")
    assert "All is well." in out
    for part in (
        "mongodb",
        "nats",
        "vault",
        "blob_store",
        "secrets",
        "certificate",
        "clock",
        "disk",
        "nodes",
    ):
        assert f" {part} " in out, part


@pytest.mark.faults
def test_what_is_frozen_is_named_with_its_cure(own_stack: StackProcess, cli: Cli) -> None:
    names = ("nats", "versitygw", "mongod", "openbao", "runs")
    # The gateway knows the person then: nobody could tell it while all is frozen.
    assert failures(cli) == {}
    with frozen(own_stack, *names):
        wrong = failures(cli)
    assert {(name, "process") for name in names} <= wrong.keys()
    assert "stellwerk logs nats" in wrong["registry", "nats"]["cure"]
    assert "STELLWERK_S3_URL" in wrong["registry", "blob_store"]["cure"]
    assert "stellwerk logs runs" in wrong["runs", "service"]["cure"]
    assert wrong["registry", "mongodb"]["reason"] == "MONGODB_SILENT"
    assert "unsealed" in wrong["secrets", "vault"]["cure"]
    assert not [key for key in wrong if key[1] in ("certificate", "configuration", "disk")]


def test_without_a_stack_the_doctor_says_how_to_get_one(cli: Cli, tmp_path: Path) -> None:
    nowhere = cli.with_(STELLWERK_DATA_DIR=str(tmp_path), STELLWERK_GRPC_ADDRESS="", HOME=str(tmp_path))
    wrong = failures(nowhere)
    assert wrong["this machine", "configuration"]["reason"] == "ADDRESS_MISSING"


def write(cli: Cli, first: int, count: int) -> None:
    """So many changes of resources."""
    with Client(
        grpc_address=cli.environment["STELLWERK_GRPC_ADDRESS"],
        gateway_url=cli.environment["STELLWERK_GATEWAY_URL"],
        api_key=Path(cli.environment["STELLWERK_API_KEY_FILE"]).read_text().strip(),
    ) as client:
        for number in range(first, first + count):
            client.workspace(WORKSPACE).secrets.set(f"s{number}", "x")


def read(watch: "subprocess.Popen[str]", count: int) -> list[dict[str, Any]]:
    assert watch.stdout is not None
    return [json.loads(watch.stdout.readline()) for _ in range(count)]


def test_a_watch_survives_restarts_without_gap_or_repeat(
    own_stack: StackProcess, cli: Cli, tmp_path: Path
) -> None:
    position = tmp_path / "position"
    options = ("events", "watch", "-o", "json", "--type", "*.secret.*", "--resume", str(position))
    watch = cli.start(*options)
    own_stack.wait_for(position.exists)
    write(cli, 0, 3)
    events = read(watch, 3)
    for name in ("telemetry", "gateway"):
        own_stack.wait_until_back(name, own_stack.kill(name))
        write(cli, len(events), 3)
        events += read(watch, 3)
    # A line is written before its position.
    own_stack.wait_for(lambda: json.loads(position.read_text())["next_sequence"] > events[-1]["sequence"])
    watch.send_signal(signal.SIGINT)
    watch.wait(120)
    assert watch.stdout is not None
    watch.communicate()
    # Meanwhile nobody watches; the next one goes on where this one was.
    write(cli, len(events), 3)
    events += [json.loads(line) for line in cli.ok(*options, "--limit", "3").splitlines()]
    assert [event["subject"].rsplit("/", 1)[1] for event in events] == [f"s{n}" for n in range(12)]
    sequences = [event["sequence"] for event in events]
    assert sequences == sorted(set(sequences))


async def test_a_plain_client_reads_events_until_it_is_revoked(cli: Cli) -> None:
    given = cli.json("events", "credentials", "create", "--name", "plain", "--since", "1h")
    client, ended = Nats(), asyncio.Event()

    async def on_close() -> None:
        ended.set()

    inbox = given["inbox_prefix"].encode()
    login = {"user": given["user"], "password": given["password"], "inbox_prefix": inbox}
    try:
        await client.connect(given["url"], allow_reconnect=False, closed_cb=on_close, **login)
        jetstream = client.jetstream(prefix=given["api_prefix"])
        consumer = await jetstream.pull_subscribe_bind(
            given["consumer"], stream=given["stream"], inbox_prefix=inbox + b"."
        )
        first = (await consumer.fetch(1, timeout=60))[0]
        assert json.loads(first.data)["subject"] == f"workspaces/{WORKSPACE}"
        await first.ack_sync()
        await asyncio.to_thread(cli.ok, "events", "credentials", "revoke", "plain", "--yes")
        async with asyncio.timeout(60):
            await ended.wait()
    finally:
        await client.close()
    refused = Nats()
    with pytest.raises(nats.errors.Error):
        await refused.connect(given["url"], allow_reconnect=False, **login)
    await refused.close()
    assert "REVOKED" in cli.ok("events", "credentials", "list")


def test_the_activity_log_has_who_did_and_who_was_refused(
    own_stack: StackProcess, cli: Cli, tmp_path: Path
) -> None:
    stranger = cli.with_(STELLWERK_API_KEY="swk_stranger", STELLWERK_API_KEY_FILE="")
    stranger.run("run", "list").check_clear("KEY_INVALID", 4)

    def told() -> bool:
        return "KEY_INVALID" in cli.ok("activity", "list", "--result", "denied")

    own_stack.wait_for(told)
    done = cli.json("activity", "list", "--action", "workspace.created")
    assert [(item["actor"], item["resource"], item["address"]) for item in done] == [
        ("users/owner", f"workspaces/{WORKSPACE}", "127.0.0.1")
    ]
    file = tmp_path / "log.csv"
    cli.ok("activity", "export", "--since", "1h", "--file", str(file))
    assert file.read_bytes().startswith(b"time,actor,action,resource,")
    lines = cli.ok("activity", "export", "-o", "jsonl").splitlines()
    assert len(lines) >= len(file.read_bytes().split(b"\r\n")) - 2
