"""The supervisor with small children of our own: order, restarts, reasons, and bounded stops."""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from stellwerk_launcher.context import ProcessSpec
from stellwerk_launcher.errors import LauncherError
from stellwerk_launcher.health import Check
from stellwerk_launcher.process import LOG_LIMIT_BYTES, is_alive, rotate, shorten
from stellwerk_launcher.supervisor import Supervisor
from stellwerk_launcher.tied import tied_to_parent

READY_THEN_WAIT = "import pathlib, signal, sys; pathlib.Path(sys.argv[1]).touch(); signal.pause()"
IGNORES_SIGTERM = (
    "import pathlib, signal, sys\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "pathlib.Path(sys.argv[1]).touch()\n"
    "while True: signal.pause()"
)


class Stage:
    """A supervisor, what it reported, and a way to wait for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self.changed = asyncio.Event()
        self.supervisor = Supervisor(folder, self.lines.append, self.changed.set)

    def spec(self, name: str, program: str, **options: float) -> ProcessSpec:
        ready = self.folder / f"{name}.ready"
        return ProcessSpec(
            name=name,
            command=(sys.executable, "-c", program, str(ready)),
            check=Check("file", str(ready)),
            environment={},
            stale_file=ready,
            ready_timeout_seconds=options.get("ready_timeout_seconds", 100),
            stop_timeout_seconds=options.get("stop_timeout_seconds", 10),
        )

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(100):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    await stage.supervisor.stop(())


async def test_a_dead_process_comes_back_with_its_reason(stage: Stage) -> None:
    await stage.supervisor.start([stage.spec("one", READY_THEN_WAIT)])
    child = stage.supervisor.children["one"]
    first = child.pid
    assert first is not None
    psutil.Process(first).kill()
    await stage.until(lambda: child.restarts == 1 and child.ready)
    assert child.pid != first
    assert child.last_reason == "killed by SIGKILL"
    assert any("one died: killed by SIGKILL" in line for line in stage.lines)


async def test_a_process_that_an_unnamed_signal_kills_comes_back_as_well(stage: Stage) -> None:
    await stage.supervisor.start([stage.spec("one", READY_THEN_WAIT)])
    child = stage.supervisor.children["one"]
    assert child.pid is not None
    psutil.Process(child.pid).send_signal(signal.SIGRTMIN + 6)
    await stage.until(lambda: child.restarts == 1 and child.ready)
    assert child.last_reason == "killed by signal 40"


async def test_a_process_that_dies_at_its_start_is_an_error_that_names_its_log(stage: Stage) -> None:
    with pytest.raises(LauncherError, match="no such option") as caught:
        await stage.supervisor.start([stage.spec("bad", "raise SystemExit('no such option')")])
    assert caught.value.reason == "PROCESS_DIED"
    assert "bad.log" in caught.value.cure
    assert "exit code 1" in caught.value.message


async def test_a_failed_start_ends_the_neighbours(stage: Stage) -> None:
    with pytest.raises(LauncherError):
        await stage.supervisor.start(
            [stage.spec("good", READY_THEN_WAIT), stage.spec("bad", "raise SystemExit(3)")]
        )
    await stage.supervisor.stop(())
    assert all(child.pid is None for child in stage.supervisor.children.values())


async def test_a_process_that_is_never_ready_is_an_error(stage: Stage) -> None:
    slow = stage.spec("slow", "import signal; signal.pause()", ready_timeout_seconds=0.5)
    with pytest.raises(LauncherError) as caught:
        await stage.supervisor.start([slow])
    assert caught.value.reason == "PROCESS_NOT_READY"


async def test_a_stubborn_process_is_killed_after_the_bound(stage: Stage) -> None:
    await stage.supervisor.start([stage.spec("stubborn", IGNORES_SIGTERM, stop_timeout_seconds=0.3)])
    child = stage.supervisor.children["stubborn"]
    await stage.supervisor.stop_one("stubborn")
    assert child.process is not None
    assert child.process.returncode == -signal.SIGKILL
    assert "killed" in child.last_reason


async def test_stop_goes_group_by_group_and_nothing_is_restarted(stage: Stage) -> None:
    for name in ("server", "service", "agent"):
        await stage.supervisor.start([stage.spec(name, READY_THEN_WAIT)])
    ended: list[str] = []
    children = stage.supervisor.children

    async def note(name: str) -> None:
        process = children[name].process
        assert process is not None
        await process.wait()
        ended.append(name)

    notes = [asyncio.create_task(note(name)) for name in children]
    await stage.supervisor.stop((("agent",), ("service",)))
    await asyncio.gather(*notes)
    assert ended == ["agent", "service", "server"]
    assert all(child.restarts == 0 for child in children.values())


def test_a_tied_process_ends_with_its_parent(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    command = [sys.executable, "-c", READY_THEN_WAIT, str(ready)]
    program = (
        "import subprocess, signal\n"
        "from stellwerk_launcher.tied import tied_to_parent\n"
        f"print(subprocess.Popen(tied_to_parent({command!r})).pid, flush=True)\n"
        "signal.pause()"
    )
    parent = subprocess.Popen(
        tied_to_parent([sys.executable, "-c", program]), stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    created = child.create_time()
    deadline = time.monotonic() + 100
    while not ready.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    while is_alive(child.pid, created):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_log_of_a_running_process_is_bounded(tmp_path: Path) -> None:
    log = tmp_path / "one.log"
    with log.open("ab", buffering=0) as writer:
        writer.write(b"x" * (LOG_LIMIT_BYTES + 1))
        shorten(log)
        writer.write(b"next")
    assert log.read_bytes() == b"next"


def test_logs_are_bounded_at_each_start(tmp_path: Path) -> None:
    log = tmp_path / "one.log"
    log.write_bytes(b"x" * (LOG_LIMIT_BYTES + 1))
    rotate(log)
    assert not log.exists()
    assert (tmp_path / "one.log.1").stat().st_size == LOG_LIMIT_BYTES + 1
