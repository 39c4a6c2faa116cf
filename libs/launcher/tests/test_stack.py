"""`up`, `down`, `status`, `logs` on real servers: twice, killed, interrupted, and with bad surroundings."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from pymongo import MongoClient

from stellwerk_launcher import folder, stack
from stellwerk_launcher.errors import LauncherError
from stellwerk_launcher.testing import Servers, StackProcess, logged_in

pytestmark = pytest.mark.slow


def _processes_of(data_dir: Path) -> list[psutil.Process]:
    """Every process that has the folder in its command line, and every recorded one."""
    found = folder.leftovers(folder.read_state(data_dir))
    for process in psutil.process_iter(["cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or ())
        if str(data_dir) in line and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def _wait(condition: Callable[[], bool], timeout_seconds: float = 100) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


def borrowed_vault(servers: Servers) -> dict[str, str]:
    """Variables that have a stack use the session's Vault."""
    return {
        "STELLWERK_VAULT_URL": servers.vault_url,
        "STELLWERK_VAULT_SECRET_ID": servers.launcher_secret_id,
    }


@pytest.fixture
def own(tmp_path: Path, servers: Servers) -> Iterator[StackProcess]:
    """Servers of its own but for Vault, whose first start takes 8 s; in a folder with a space."""
    process = StackProcess(tmp_path / "a stack", servers_only=True, environment=borrowed_vault(servers))
    yield process
    process.stop()
    assert _processes_of(process.data_dir) == []


def test_status_names_every_address_and_keeps_secrets_private(servers: Servers) -> None:
    status = servers.process.status()
    assert {process["name"] for process in status["processes"]} == {"nats", "mongod", "openbao", "versitygw"}
    for process in status["processes"]:
        assert set(process) == {"name", "pid", "version", "address", "health", "restarts", "last_reason"}
        assert process["health"] == "SERVING"
    assert "internal" not in status
    for name in ("stack.json", "credentials.json", "owner.key"):
        assert (servers.data_dir / name).stat().st_mode & 0o777 == 0o600, name
    assert servers.data_dir.stat().st_mode & 0o777 == 0o700
    assert Path(status["owner_key_file"]).read_text().startswith("swk_")


def test_a_second_up_changes_nothing(servers: Servers, capsys: pytest.CaptureFixture[str]) -> None:
    before = servers.process.status()
    for detach in (True, False):
        assert stack.up(servers.data_dir, detach=detach) == 0
        assert "up already" in capsys.readouterr().out
    assert servers.process.status() == before


@pytest.mark.parametrize("name", ["nats", "mongod", "openbao", "versitygw"])
def test_a_killed_server_comes_back_on_its_address(servers: Servers, name: str) -> None:
    before = servers.process.process(name)
    pid = servers.process.kill(name)
    servers.process.wait_until_back(name, pid)
    after = servers.process.process(name)
    assert after["address"] == before["address"]
    assert after["restarts"] == before["restarts"] + 1
    assert after["last_reason"] == "killed by SIGKILL"


def _admin(data_dir: Path, servers: Servers) -> MongoClient[dict[str, Any]]:
    with logged_in(servers.vault_url, servers.launcher_secret_id) as vault:
        password = vault.read("launcher")["mongodb_password"]
    address = folder.read_state(data_dir)["mongodb_uri"].rpartition("@")[2]
    return MongoClient(f"mongodb://admin:{password}@{address}", serverSelectionTimeoutMS=20_000)


def test_a_killed_supervisor_leaves_nothing_and_the_next_start_has_ports_and_data(
    own: StackProcess, servers: Servers
) -> None:
    first = own.start()
    with _admin(own.data_dir, servers) as client:
        client["stellwerk_runs"]["kept"].insert_one({"x": 1})
    own.stop(signal.SIGKILL)
    _wait(lambda: _processes_of(own.data_dir) == [])
    with pytest.raises(LauncherError, match="No stack is up"):
        own.status()
    stack.down(own.data_dir)
    second = own.start()
    for name in ("nats_url", "mongodb_uri", "s3_url"):
        assert second[name] == first[name]
    with _admin(own.data_dir, servers) as client:
        assert client["stellwerk_runs"]["kept"].count_documents({}) == 1


def test_a_port_that_somebody_took_is_replaced(own: StackProcess, servers: Servers) -> None:
    first = own.start()
    host, port = own.process("mongod")["address"].split(":")
    own.stop()
    # Bound and not listening: mongod would wait 30 s for an owner that listens and never answers.
    with socket.socket() as owner:
        owner.bind((host, int(port)))
        second = own.start()
        assert second["mongodb_uri"] != first["mongodb_uri"]
        with _admin(own.data_dir, servers) as client:
            client["stellwerk_runs"]["moved"].insert_one({"x": 1})


@pytest.mark.parametrize("moment", ["starting", "nats is ready", "mongod is ready"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_starting_ends_everything(own: StackProcess, moment: str, number: int) -> None:
    own.launch()
    own.wait_for(lambda: moment in own.output.read_text())
    code = own.stop(number)
    # It may have been ready just before the signal came.
    assert code in (0, 130)
    assert _processes_of(own.data_dir) == []


@pytest.mark.faults
def test_a_first_start_of_vault_that_was_cut_short_is_begun_anew(tmp_path: Path) -> None:
    process = StackProcess(tmp_path / "data", servers_only=True)
    process.launch()
    audit = process.data_dir / "openbao" / "audit.log"
    # Its set-up has begun once it audits its own requests.
    process.wait_for(lambda: audit.exists() and audit.stat().st_size > 0)
    process.kill("openbao")
    with pytest.raises(AssertionError, match="the stack ended with 1"):
        process.wait_for(lambda: False)
    with process:
        assert {found["health"] for found in process.status()["processes"]} == {"SERVING"}


def test_up_detach_and_down_by_command(tmp_path: Path, servers: Servers) -> None:
    data_dir = tmp_path / "detached"
    environment = os.environ | borrowed_vault(servers)

    def launcher(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "stellwerk_launcher", *arguments, "--data-dir", str(data_dir)]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=90, check=False
        )

    try:
        started = launcher("up", "--detach", "--servers-only")
        assert started.returncode == 0, started.stdout + started.stderr
        assert "stellwerk is up" in started.stdout
        assert stack.status(data_dir)["state"] == "ready"
        shown = launcher("logs", "nats")
        assert "Server is ready" in shown.stdout
        unknown = launcher("logs", "nobody")
        assert unknown.returncode == 1
        assert "LOG_NOT_FOUND" in unknown.stderr
    finally:
        ended = launcher("down")
    assert ended.returncode == 0
    assert _processes_of(data_dir) == []
    assert "not up" in launcher("down").stdout
    assert launcher("status").returncode == 1


def test_a_second_start_waits_for_the_first_and_shares_its_fate(own: StackProcess) -> None:
    own.launch()
    own.wait_for(lambda: folder.read_state(own.data_dir).get("state") == "starting")
    ready: list[str] = []
    assert stack.up(own.data_dir, detach=True, on_ready=lambda: ready.append("called")) == 0
    assert folder.read_state(own.data_dir)["state"] == "ready"
    assert ready == ["called"]


def test_a_second_start_fails_as_the_first_does(tmp_path: Path, servers: Servers) -> None:
    slow = '[ "$1" = --version ] && echo v2.15.0 && exit\nsleep 2; echo broken; exit 3'
    process = StackProcess(
        tmp_path / "data",
        servers_only=True,
        environment=_fake(tmp_path / "bin", "nats-server", slow) | borrowed_vault(servers),
    )
    process.launch()
    process.wait_for(lambda: folder.read_state(process.data_dir).get("state") == "starting")
    with pytest.raises(LauncherError) as caught:
        stack.up(process.data_dir, detach=True)
    assert (caught.value.reason, "nats" in caught.value.message) == ("PROCESS_DIED", True)
    with pytest.raises(AssertionError, match="the stack ended with 1"):
        process.wait_for(lambda: False)


def test_a_second_start_says_when_the_first_was_stopped(tmp_path: Path, servers: Servers) -> None:
    slow = '[ "$1" = --version ] && echo v2.15.0 && exit\nexec sleep 60'
    process = StackProcess(
        tmp_path / "data",
        servers_only=True,
        environment=_fake(tmp_path / "bin", "nats-server", slow) | borrowed_vault(servers),
    )
    process.launch()
    process.wait_for(lambda: "starting nats" in process.output.read_text())
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(stack.up, process.data_dir, detach=True)
        with pytest.raises(TimeoutError):
            second.result(0.5)
        process.stop()
        with pytest.raises(LauncherError, match="--data-dir") as caught:
            second.result(30)
    assert caught.value.reason == "START_INTERRUPTED"


def test_a_cure_repeats_the_folder_that_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LauncherError) as caught:
        stack.status(tmp_path / "a stack")
    assert caught.value.cure == f"Start one with: stellwerk up --data-dir '{tmp_path}/a stack'"
    monkeypatch.setenv("STELLWERK_DATA_DIR", str(tmp_path))
    with pytest.raises(LauncherError) as caught:
        stack.status(tmp_path)
    assert caught.value.cure == "Start one with: stellwerk up"


def _fake(folder: Path, name: str, script: str) -> dict[str, str]:
    """An environment whose PATH begins with a program of that name."""
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def _failed_start(tmp_path: Path, environment: dict[str, str]) -> str:
    process = StackProcess(tmp_path / "data", servers_only=True, environment=environment)
    with pytest.raises(AssertionError, match="the stack ended with 1"):
        process.start()
    assert _processes_of(process.data_dir) == []
    return process.output.read_text()


def test_a_server_that_dies_at_start_is_named_with_its_log(tmp_path: Path, servers: Servers) -> None:
    dying = _fake(
        tmp_path / "bin", "nats-server", '[ "$1" = --version ] && echo v2.15.0 && exit\necho broken; exit 3'
    )
    output = _failed_start(tmp_path, dying | borrowed_vault(servers))
    assert "PROCESS_DIED" in output
    assert "nats.log" in output
    assert "broken" in output
    assert "Traceback" not in output


def test_a_missing_library_is_named_with_its_package(tmp_path: Path) -> None:
    broken = "echo 'mongod: error while loading shared libraries: libcurl.so.4: cannot open' >&2; exit 127"
    output = _failed_start(tmp_path, _fake(tmp_path / "bin", "mongod", broken))
    assert "LIBRARY_MISSING" in output
    assert "libcurl4" in output


def test_an_external_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    output = _failed_start(tmp_path, {"STELLWERK_NATS_URL": "nats://user:hidden@127.0.0.1:9"})
    assert "SERVER_UNREACHABLE" in output
    assert "127.0.0.1:9" in output
    assert "hidden" not in output


def test_a_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LauncherError) as caught:
        folder.prepare(tmp_path / ("x" * 200) / ("y" * 200))
    assert caught.value.reason == "PATH_TOO_LONG"


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "data", Path("/proc/stellwerk")):
        with pytest.raises(LauncherError) as caught:
            folder.prepare(path)
        assert caught.value.reason == "DATA_DIR_NOT_WRITABLE"


def test_a_full_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "LEAST_FREE_BYTES", 1 << 60)
    with pytest.raises(LauncherError) as caught:
        folder.prepare(tmp_path / "data")
    assert caught.value.reason == "DISK_FULL"


def test_following_a_log_yields_new_lines_also_after_rotation(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "one.log"
    log.parent.mkdir()
    log.write_text("first\n")
    lines = stack.logs(tmp_path, "one", follow=True)
    assert next(lines) == "first"
    log.replace(log.with_suffix(".log.1"))
    log.write_text("second\n")
    assert next(lines) == "second"
