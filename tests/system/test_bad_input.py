"""Whatever is wrong is said clearly: a reason code, a cure, an exit code, no traceback."""

import socket
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from stellwerk_launcher.testing import StackProcess
from tests.system.support import Cli

FAILED, USAGE, NOT_FOUND, DENIED, UNREACHABLE = 1, 2, 3, 4, 5


@pytest.fixture(scope="module")
def cli(stack: dict[str, Any]) -> Cli:
    cli = Cli.of(stack, "badinput")
    cli.ok("workspace", "create", "badinput")
    return cli


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A source folder."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "train.py").write_text("print('hello')\n")
    return code


def submit(cli: Cli, folder: Path, command: str, *more: str) -> Any:
    return cli.run("run", "submit", folder, "--command", command, *more)


def test_an_unknown_workspace(cli: Cli, folder: Path) -> None:
    outcome = cli.run("run", "submit", folder, "--command", "true", "-w", "nowhere")
    outcome.check_clear("PERMISSION_DENIED", DENIED, "nowhere")


@pytest.mark.parametrize("name", ["Demo", "a b", "a/b", "ä", "x" * 10_000])
def test_an_illegal_name(cli: Cli, name: str) -> None:
    outcome = cli.run("workspace", "create", name)
    assert outcome.reason == "INVALID_NAME", outcome
    assert outcome.code in (FAILED, USAGE)
    assert len(outcome.err) < 1_000


def test_a_script_that_exits_3(cli: Cli, folder: Path) -> None:
    outcome = submit(cli, folder, "echo last words >&2; exit 3", "--name", "exits-3")
    assert outcome.code == FAILED
    assert "SCRIPT_FAILED" in outcome.out + outcome.err
    assert "Traceback" not in outcome.err
    shown = cli.json("run", "show", "exits-3")
    assert (shown["state"], shown["exitCode"], shown["reason"]["code"]) == (
        "RUN_STATE_FAILED",
        3,
        "SCRIPT_FAILED",
    )
    assert "last words" in cli.ok("run", "logs", "exits-3")


def test_a_package_that_the_environment_lacks(cli: Cli, folder: Path) -> None:
    (folder / "train.py").write_text("import pandas\n")
    outcome = submit(cli, folder, "python train.py", "--name", "lacks")
    assert outcome.code == FAILED
    shown = cli.json("run", "show", "lacks")
    assert shown["reason"]["code"] == "MODULE_NOT_FOUND"
    assert "pandas" in shown["reason"]["message"]
    assert shown["reason"]["cure"]


def test_a_package_that_does_not_exist(cli: Cli, folder: Path) -> None:
    (folder / "requirements.txt").write_text("stellwerk-no-such-package-zzz\n")
    outcome = submit(
        cli, folder, "python train.py", "--name", "unresolvable", "-r", str(folder / "requirements.txt")
    )
    assert outcome.code == FAILED
    shown = cli.json("run", "show", "unresolvable")
    assert shown["reason"]["code"] == "ENVIRONMENT_UNRESOLVABLE"
    assert "stellwerk-no-such-package-zzz" in shown["reason"]["message"]


def test_a_compute_that_does_not_exist(cli: Cli, folder: Path) -> None:
    submit(cli, folder, "true", "--compute", "gpu-cluster").check_clear(
        "COMPUTE_NOT_FOUND", NOT_FOUND, "gpu-cluster"
    )


def test_a_model_path_that_is_not_in_the_outputs(cli: Cli, folder: Path) -> None:
    assert submit(cli, folder, "mkdir -p outputs; echo x > outputs/a", "--name", "has-a").code == 0
    outcome = cli.run("model", "register", "m", "--run", "has-a", "--path", "outputs/b")
    outcome.check_clear("ARTIFACT_NOT_FOUND", NOT_FOUND, "outputs/b")


def test_a_wrong_key_and_no_key(cli: Cli, stack: dict[str, Any]) -> None:
    wrong = cli.with_(STELLWERK_API_KEY="swk_wrong").run("workspace", "list")
    wrong.check_clear("KEY_INVALID", DENIED)
    url = f"{stack['gateway_url']}/stellwerk.registry.v1.WorkspaceService/ListWorkspaces"
    assert httpx.post(url, json={}, timeout=60).status_code == 401


def test_a_server_that_is_not_there(cli: Cli) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        outcome = cli.with_(STELLWERK_GRPC_ADDRESS=address).run("workspace", "list")
    assert outcome.code == UNREACHABLE, outcome
    assert address in outcome.err
    assert "stellwerk up" in outcome.err


def test_scoring_without_a_key_or_endpoint(cli: Cli, stack: dict[str, Any], owner_key: str) -> None:
    url = f"{stack['gateway_url']}/endpoints/badinput/nothing/score"
    assert httpx.post(url, content=b"{}", timeout=60).status_code == 401
    unknown = httpx.post(url, content=b"{}", headers={"authorization": f"Bearer {owner_key}"}, timeout=60)
    assert unknown.status_code == 404
    assert unknown.json()["reason"] == "ENDPOINT_NOT_FOUND"


SCORE = """
import json

def init():
    pass

def run(raw):
    return [len(json.loads(raw)["data"])]
"""


def test_a_scoring_payload_that_is_not_json(
    cli: Cli, stack: dict[str, Any], owner_key: str, folder: Path
) -> None:
    (folder / "score.py").write_text(SCORE)
    (folder / "weights").write_text("1")
    cli.ok("model", "register", "weights", "--path", folder / "weights")
    cli.ok("environment", "create", "empty")
    cli.ok("endpoint", "create", "counts")
    cli.ok(
        *("deployment", "create", "one", "--endpoint", "counts", "--model", "weights:1"),
        *("--environment", "empty", "--code", folder, "--script", "score.py"),
    )
    url = f"{stack['gateway_url']}/endpoints/badinput/counts/score"
    headers = {"authorization": f"Bearer {owner_key}"}
    assert httpx.post(url, content=b'{"data": [1, 2]}', headers=headers, timeout=60).json() == [2]
    bad = httpx.post(url, content=b"not json", headers=headers, timeout=60)
    assert bad.status_code == 400
    assert bad.json()["reason"] == "INVALID_JSON"
    script_error = httpx.post(url, content=b'{"wrong": 1}', headers=headers, timeout=60)
    assert script_error.status_code == 500
    assert "Traceback" not in script_error.text


def test_a_scoring_script_that_cannot_be_imported(cli: Cli, folder: Path) -> None:
    (folder / "score.py").write_text("import pandas\ndef init(): pass\ndef run(raw): return 1\n")
    (folder / "weights").write_text("1")
    cli.ok("model", "register", "broken", "--path", folder / "weights")
    cli.ok("environment", "create", "empty")
    cli.ok("endpoint", "create", "broken")
    outcome = cli.run(
        *("deployment", "create", "one", "--endpoint", "broken", "--model", "broken:1"),
        *("--environment", "empty", "--code", folder, "--script", "score.py"),
    )
    assert outcome.code == FAILED
    assert "pandas" in outcome.out + outcome.err
    assert "Traceback" not in outcome.err.partition("log")[0]


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A file system with room for a few megabytes."""
    target = tmp_path / "small"
    target.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(target)], check=False, capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("only root can mount a small file system")
    yield target
    subprocess.run(["umount", "-l", str(target)], check=True)


@pytest.mark.faults
def test_a_full_disk_in_the_blob_store(small_disk: Path, tmp_path: Path, folder: Path) -> None:
    data_dir = tmp_path / "data"
    store = data_dir / "versitygw"
    store.mkdir(parents=True)
    (store / "data").symlink_to(small_disk)
    with StackProcess(data_dir) as process:
        status = process.status()
        cli = Cli.of(status, "full")
        cli.ok("workspace", "create", "full")
        (folder / "big").write_bytes(b"\1\2\3\4" * 2 * 1024 * 1024)
        outcome = submit(cli, folder, "true")
        outcome.check_clear("BLOB_STORE_FULL", FAILED)
        # With room again, the same command works: nothing half-written was kept.
        (folder / "big").unlink()
        assert submit(cli, folder, "true").code == 0
