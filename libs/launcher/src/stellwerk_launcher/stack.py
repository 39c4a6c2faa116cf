"""What the command line calls: `up`, `down`, `status`, `logs`. Each raises `LauncherError`."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from stellwerk_launcher import folder, services
from stellwerk_launcher.errors import LauncherError
from stellwerk_launcher.health import Check
from stellwerk_launcher.launch import INTERRUPTED, Launch
from stellwerk_launcher.process import is_alive, wait_until_gone
from stellwerk_launcher.report import Reporter

# A detached supervisor sends its error to its starter as one line behind this mark.
ERROR_MARK = "STELLWERK-LAUNCHER-ERROR "
# Longer than all bounds of a stop together.
DOWN_TIMEOUT_SECONDS = 120.0
FOLLOW_SECONDS = 0.2


def up(data_dir: Path, *, detach: bool, servers_only: bool = False) -> int:
    """Starts the stack and returns the exit code; a stack that is up stays as it is.

    In the foreground it serves until SIGINT or SIGTERM. `detach` returns when everything is ready.
    `servers_only` leaves the platform's services out and adds a NATS user `test` with all rights.
    """
    path = folder.prepare(data_dir)
    if folder.is_held(path):
        return _is_up_already(path)
    if detach:
        return _up_in_background(path, servers_only)
    return serve(path, servers_only=servers_only)


def serve(path: Path, *, servers_only: bool, detached: bool = False) -> int:
    """The supervisor itself, in this process."""
    lock = folder.FolderLock(path)
    if not lock.acquire():
        return _is_up_already(path)
    reporter = Reporter(path / folder.LOGS_FOLDER / "supervisor.log", detached=detached)
    try:
        with folder.translated(path):
            launch = Launch(path, reporter, servers_only=servers_only)
            return asyncio.run(launch.run())
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        lock.release()


def _is_up_already(path: Path) -> int:
    state = folder.read_state(path)
    pid = state.get("internal", {}).get("supervisor", {}).get("pid")
    word = {"starting": "starting already", "stopping": "stopping"}.get(state.get("state", ""), "up already")
    print(f"stellwerk is {word} on {path} (pid {pid}); nothing was changed", flush=True)
    return 0


def _up_in_background(path: Path, servers_only: bool) -> int:
    command = [sys.executable, "-m", "stellwerk_launcher", "up", "--detached", "--data-dir", str(path)]
    if servers_only:
        command.append("--servers-only")
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        error = _relay(process)
    except KeyboardInterrupt:
        process.send_signal(signal.SIGTERM)
        _relay(process)
        process.wait()
        return INTERRUPTED
    if folder.is_held(path) and process.poll() is None and folder.read_state(path).get("state") == "ready":
        # It lives on by itself; without this, Popen would warn about a child that nobody waited for.
        process.returncode = 0
        return 0
    code = process.wait()
    if error is not None:
        raise error
    return code


def _relay(process: "subprocess.Popen[str]") -> LauncherError | None:
    """Passes the child's lines on until it closes its output; returns its error, if it sent one."""
    error = None
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(ERROR_MARK):
            error = LauncherError(**json.loads(line.removeprefix(ERROR_MARK)))
        else:
            print(line, end="", flush=True)
    return error


def down(data_dir: Path) -> int:
    """Stops the stack, or what a killed supervisor left; a stack that is down stays down."""
    path = data_dir.expanduser().absolute()
    state = folder.read_state(path)
    supervisor = state.get("internal", {}).get("supervisor", {})
    if folder.is_held(path) and is_alive(supervisor.get("pid"), supervisor.get("create_time", 0.0)):
        process = psutil.Process(supervisor["pid"])
        process.terminate()
        if wait_until_gone([process], DOWN_TIMEOUT_SECONDS):
            process.kill()
            wait_until_gone([process], folder.KILL_TIMEOUT_SECONDS)
            _end_remains(path)
        print(f"stellwerk is down on {path}", flush=True)
        return 0
    remains = _end_remains(path) if state and not folder.is_held(path) else 0
    note = f"; ended {remains} processes that a killed supervisor left" if remains else ""
    print(f"stellwerk is not up on {path}{note}", flush=True)
    return 0


def _end_remains(path: Path) -> int:
    """After a killed supervisor: its processes, and the commands of its agent."""
    count = folder.end_leftovers(folder.read_state(path))
    if (path / services.AGENT_FOLDER).exists():
        subprocess.run(services.sweep_command(path), timeout=30, check=False)
    return count


def status(data_dir: Path) -> dict[str, Any]:
    """Every process with its health now, and every address; raises when the stack is not up."""
    path = data_dir.expanduser().absolute()
    if not folder.is_held(path):
        raise LauncherError("STACK_DOWN", f"No stack is up on {path}.", "Start one with: stellwerk up")
    state = folder.read_state(path)
    internal = state.pop("internal", {})
    checks, created = internal.get("checks", {}), internal.get("create_times", {})

    def health(process: dict[str, Any]) -> str:
        if not is_alive(process["pid"], created.get(process["name"], 0.0)):
            return "DEAD"
        return "SERVING" if Check(*checks[process["name"]]).passes() else "NOT_SERVING"

    processes = state.get("processes", [])
    with ThreadPoolExecutor(max_workers=8) as pool:
        for process, answer in zip(processes, pool.map(health, processes), strict=True):
            process["health"] = answer
    return state


def logs(data_dir: Path, name: str, follow: bool) -> Iterator[str]:
    """The lines of one process' log; with `follow`, further ones as they come, until interrupted."""
    path = data_dir.expanduser().absolute() / folder.LOGS_FOLDER
    log = path / f"{name}.log"
    names = sorted(file.stem for file in path.glob("*.log"))
    if name not in names:
        known = ", ".join(names) or "none yet"
        raise LauncherError("LOG_NOT_FOUND", f"There is no log of {name!r}.", f"There are: {known}.")
    return _lines(log, follow)


def _lines(log: Path, follow: bool) -> Iterator[str]:
    file = log.open(errors="replace")
    try:
        while True:
            line = file.readline()
            if line:
                yield line.rstrip("\n")
            elif not follow:
                return
            elif _was_replaced(log, file.fileno()):
                file.close()
                file = log.open(errors="replace")
            else:
                time.sleep(FOLLOW_SECONDS)
    finally:
        file.close()


def _was_replaced(log: Path, descriptor: int) -> bool:
    """True after a rotation: the name belongs to another file now."""
    return log.exists() and log.stat().st_ino != os.fstat(descriptor).st_ino
