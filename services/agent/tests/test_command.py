"""The shim and the processes of a command: started once, found again, ended with all descendants."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stellwerk_agent import processes, shim
from stellwerk_agent.command import Command, Exit
from stellwerk_agent.folder import NODE_STOPPED, STD_LOG, AllocationFolder
from stellwerk_agent.run import outcome_of
from stellwerk_agent.sweep import main as sweep_main
from stellwerk_agent.sweep import sweep
from stellwerk_agent.worker import FAILED, SUCCEEDED
from stellwerk_protos.compute.v1 import agents_pb2, computes_pb2

DEMO = "workspaces/demo"
WHERE = "`stellwerk run logs one --log user_logs/std_log.txt`"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An allocation's folder, in a place with a space in its name."""
    path = tmp_path / "an agent" / "allocations" / "demo.one"
    for name in ("command", "user_logs", "work"):
        (path / name).mkdir(parents=True)
    return path


async def start(folder: Path, command: str) -> Command:
    started = Command(folder / "command", folder)
    argv = ["/bin/sh", "-c", command]
    await started.start(argv, folder / "work", {"PATH": "/usr/bin:/bin"}, folder / STD_LOG)
    return started


def text(folder: Path) -> str:
    return (folder / STD_LOG).read_text()


@pytest.mark.parametrize(
    ("command", "code"), [("echo one; echo two >&2", 0), ("exit 3", 3), ("kill -9 $$", -9)]
)
async def test_a_command_runs_and_its_end_is_known(folder: Path, command: str, code: int) -> None:
    started = await start(folder, command)
    assert await started.wait() == Exit(code)
    assert await Command(folder / "command", folder).wait() == Exit(code), "also after a restart"
    if code == 0:
        assert text(folder) == "one\ntwo\n"


async def test_a_command_that_cannot_be_started_says_why(folder: Path) -> None:
    started = Command(folder / "command", folder)
    await started.start(["/no/such/program"], folder / "work", {}, folder / STD_LOG)
    ended = await started.wait()
    assert "No such file" in ended.error
    assert outcome_of(ended, "", WHERE).reason.code == "COMMAND_NOT_STARTED"


async def test_two_agents_start_it_once(folder: Path) -> None:
    started = await start(folder, "echo ran; sleep 0.2")
    again = [sys.executable, "-I", "-S", shim.__file__, str(folder / "command")]
    assert (await asyncio.to_thread(subprocess.run, again, check=True)).returncode == 0
    await started.wait()
    assert text(folder) == "ran\n"


async def test_a_lost_shim_is_not_mistaken_for_success(folder: Path) -> None:
    started = await start(folder, "sleep 60")
    claim = json.loads((folder / "command" / "claim.json").read_bytes())
    os.kill(claim["pid"], signal.SIGKILL)
    waiting = asyncio.create_task(started.wait())
    await started.end(1)
    ended = await waiting
    assert ended.is_lost
    assert outcome_of(ended, "", WHERE).reason.code == "COMMAND_LOST"


async def test_after_a_new_start_of_the_machine_nobody_else_is_waited_for_or_ended(folder: Path) -> None:
    """Pids and ticks begin anew then: those in the files may be somebody else's."""
    stranger = await asyncio.create_subprocess_exec("sleep", "60", start_new_session=True)
    identity = {"pid": stranger.pid, "start_ticks": processes.start_ticks(stranger.pid)}
    found = Command(folder / "command", folder)
    for name in ("claim.json", "command.json"):
        (folder / "command" / name).write_text(json.dumps({**identity, "boot": "an earlier one"}))
    assert (await asyncio.wait_for(found.wait(), 60)).is_lost
    await found.end(0)
    await asyncio.to_thread(sweep, folder.parent.parent)
    assert stranger.returncode is None
    for name in ("claim.json", "command.json"):
        (folder / "command" / name).write_text(json.dumps({**identity, "boot": shim.boot()}))
    await found.end(0)
    assert await stranger.wait() == -signal.SIGKILL


async def test_a_command_that_filled_the_disk_still_has_an_end(folder: Path) -> None:
    mounted = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)]
    if (await asyncio.to_thread(subprocess.run, mounted, capture_output=True)).returncode:
        pytest.skip("a small file system needs root")
    try:
        for name in ("command", "user_logs", "work"):
            (folder / name).mkdir()
        started = await start(folder, "head -c 9999999 /dev/zero >filled; exit 7")
        assert await started.wait() == Exit(7)
        assert not os.statvfs(folder).f_bfree
    finally:
        await asyncio.to_thread(subprocess.run, ["umount", str(folder)], check=True)


async def test_the_end_reaches_grandchildren_that_hide(folder: Path) -> None:
    hidden = "setsid sh -c 'trap \"\" TERM; sleep 60'"
    started = await start(folder, f"trap '' TERM; ({hidden} &); echo up; while :; do sleep 1; done")
    await until_it_says(folder, "up")
    await started.end(0.2)
    assert await started.wait() == Exit(-9)
    assert not processes.of_allocation(folder, None)


async def test_a_polite_command_ends_within_its_grace(folder: Path) -> None:
    started = await start(folder, "trap 'echo saved; exit 0' TERM; echo up; while :; do sleep 0.05; done")
    await until_it_says(folder, "up")
    await started.end(10)
    assert await started.wait() == Exit(0)
    assert text(folder).endswith("saved\n")


async def test_a_sweep_ends_what_an_agent_left(folder: Path) -> None:
    started = await start(folder, "sleep 60")
    await asyncio.to_thread(sweep, folder.parent.parent)
    assert await started.wait() == Exit(-15)


def _allocation(root: Path, name: str) -> AllocationFolder:
    root.mkdir(exist_ok=True)
    allocation = computes_pb2.Allocation(name=f"{DEMO}/allocations/{name}", owner=f"{DEMO}/runs/{name}")
    made = AllocationFolder.create(root, agents_pb2.Assignment(allocation=allocation))
    made.work.mkdir()
    return made


async def test_a_sweep_names_what_it_ends_and_marks_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, done = (_allocation(tmp_path / "allocations", name) for name in ("long", "done"))
    assert await (await start(done.path, "true")).wait() == Exit(0)
    # It ends as if nothing had happened to it, and still it was the node.
    started = await start(kept.path, "trap 'exit 3' TERM; echo up; while :; do sleep 0.05; done")
    await until_it_says(kept.path, "up")
    await asyncio.to_thread(sweep_main, [str(tmp_path), "--list"])
    assert capsys.readouterr().out == f"{DEMO}/runs/long\n"
    assert kept.noted(NODE_STOPPED) is None
    await asyncio.to_thread(sweep_main, [str(tmp_path)])
    assert capsys.readouterr().out == f"{DEMO}/runs/long\n"
    assert await started.wait() == Exit(3)
    assert (kept.noted(NODE_STOPPED), done.noted(NODE_STOPPED)) == ({}, None)


async def until_it_says(folder: Path, word: str) -> None:
    """Returns when the log holds the word; a file has no event to wait for."""
    async with asyncio.timeout(60):
        while word not in text(folder):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("ended", "log", "code", "part"),
    [
        (Exit(3), "a\nboom\n\n", "SCRIPT_FAILED", "exited with code 3: boom"),
        (Exit(-9), "", "SCRIPT_KILLED", "signal 9 (SIGKILL)"),
        (Exit(137), "", "SCRIPT_KILLED", "signal 9 (SIGKILL)"),
        (Exit(1), "ModuleNotFoundError: No module named 'sklearn.svm'\n", "MODULE_NOT_FOUND", "sklearn.svm"),
    ],
)
def test_each_end_has_a_reason(ended: Exit, log: str, code: str, part: str) -> None:
    outcome = outcome_of(ended, log, WHERE)
    assert (outcome.state, outcome.reason.code) == (FAILED, code)
    assert part in outcome.reason.message
    assert outcome.reason.cure
    assert code == "MODULE_NOT_FOUND" or WHERE in outcome.reason.cure


def test_success_needs_no_cure() -> None:
    assert outcome_of(Exit(0), "ModuleNotFoundError: No module named 'x'", WHERE).state == SUCCEEDED


def test_what_was_raised_from_a_missing_module_is_the_reason() -> None:
    log = (
        "ModuleNotFoundError: No module named 'google'\n\n"
        "The above exception was the direct cause of the following exception:\n\n"
        "ImportError: Add 'stellwerk' to the packages.\n"
    )
    reason = outcome_of(Exit(1), log, WHERE).reason
    assert (reason.code, "Add 'stellwerk'" in reason.message) == ("SCRIPT_FAILED", True)


def test_the_package_of_a_module_is_named() -> None:
    reason = outcome_of(Exit(1), "ModuleNotFoundError: No module named 'sklearn'", WHERE).reason
    assert "scikit-learn" in reason.cure
