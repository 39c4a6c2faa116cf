"""What the command line calls: `up`, `down`, `status`, `logs`, `rotate`. Each raises `LauncherError`."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from stellwerk_launcher import folder, services
from stellwerk_launcher.errors import LauncherError
from stellwerk_launcher.health import CHECK_TIMEOUT_SECONDS, Check
from stellwerk_launcher.launch import INTERRUPTED, Launch
from stellwerk_launcher.process import is_alive, wait_until_gone
from stellwerk_launcher.report import Reporter
from stellwerk_launcher.rotation import rotate as rotate

# A detached supervisor sends its error to its starter as one line behind this mark.
ERROR_MARK = "STELLWERK-LAUNCHER-ERROR "
# Longer than all bounds of a stop together.
DOWN_TIMEOUT_SECONDS = 120.0
FOLLOW_SECONDS = 0.2
POLL_SECONDS = 0.1
LIST_SECONDS = 10.0


def up(
    data_dir: Path,
    *,
    detach: bool,
    servers_only: bool = False,
    progress: IO[str] | None = None,
    on_ready: Callable[[], None] = lambda: None,
) -> int:
    """Starts the stack and returns the exit code; a stack that is up stays as it is.

    In the foreground it serves until SIGINT or SIGTERM. `detach` returns when everything is ready.
    Another start that is under way is waited for: its error is raised here too.
    `servers_only` leaves the platform's services out and adds a NATS user `test` with all rights.
    `progress` gets the lines instead of stdout; `on_ready` is called once everything is ready.
    """
    path = folder.prepare(data_dir)
    if not detach:
        return serve(path, servers_only=servers_only, progress=progress, on_ready=on_ready)
    code = 0 if _other_is_up(path, progress) else _up_in_background(path, servers_only, progress)
    if code == 0:
        on_ready()
    return code


def serve(
    path: Path,
    *,
    servers_only: bool,
    detached: bool = False,
    progress: IO[str] | None = None,
    on_ready: Callable[[], None] = lambda: None,
) -> int:
    """The supervisor itself, in this process."""
    lock = folder.FolderLock(path)
    while not lock.acquire():
        if _other_is_up(path, progress):
            on_ready()
            return 0
    log = path / folder.LOGS_FOLDER / "supervisor.log"
    reporter = Reporter(log, detached=detached, stream=progress, on_ready=on_ready)
    try:
        with folder.translated(path):
            folder.take(path)
            launch = Launch(path, reporter, servers_only=servers_only)
            return asyncio.run(launch.run())
    except LauncherError as error:
        folder.note_error(path, error)
        raise
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        lock.release()


def _other_is_up(path: Path, progress: IO[str] | None) -> bool:
    """Whether another supervisor is up on the folder, once it is up or gone.

    Raises its error when it was starting and failed.
    """
    words: set[str] = set()
    while folder.is_held(path):
        state = folder.read_state(path)
        word, supervisor = state.get("state", ""), folder.supervisor_of(state)
        if word == "ready" and supervisor is not None:
            print(
                f"stellwerk is up already on {path} (pid {supervisor.pid}); nothing was changed",
                file=progress,
                flush=True,
            )
            return True
        if word not in words and supervisor is not None:
            words.add(word)
            shown = "starting already" if word == "starting" else word
            print(f"stellwerk is {shown} on {path}; waiting for that", file=progress, flush=True)
        time.sleep(POLL_SECONDS)
    if "starting" not in words:
        return False
    error = folder.read_state(path).get("error")
    if error is not None:
        raise LauncherError(**error)
    raise LauncherError(
        "START_INTERRUPTED",
        f"The start that was under way on {path} was stopped.",
        f"Start again with: {folder.up_command(path)}",
    )


def _up_in_background(path: Path, servers_only: bool, progress: IO[str] | None) -> int:
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
        error = _relay(process, progress)
    except KeyboardInterrupt:
        process.send_signal(signal.SIGTERM)
        _relay(process, progress)
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


def _relay(process: "subprocess.Popen[str]", progress: IO[str] | None) -> LauncherError | None:
    """Passes the child's lines on until it closes its output; returns its error, if it sent one."""
    error = None
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(ERROR_MARK):
            error = LauncherError(**json.loads(line.removeprefix(ERROR_MARK)))
        else:
            print(line, end="", file=progress, flush=True)
    return error


def down(data_dir: Path, progress: IO[str] | None = None) -> dict[str, list[str]]:
    """Stops the stack, or what a killed supervisor left; a stack that is down stays down.

    Returns the names of the processes that were `stopped`, and of the runs and replicas that were `ended`
    by that; each of these is told before it ends, on stdout or `progress`.
    """
    path = data_dir.expanduser().absolute()
    state = folder.read_state(path)
    ended = _say_what_ends(path, progress)
    process = folder.supervisor_of(state) if folder.is_held(path) else None
    if process is not None:
        stopped = folder.living_names(state)
        process.terminate()
        if wait_until_gone([process], DOWN_TIMEOUT_SECONDS):
            process.kill()
            wait_until_gone([process], folder.KILL_TIMEOUT_SECONDS)
            _end_remains(path)
        print(f"stellwerk is down on {path}", file=progress, flush=True)
        return {"stopped": stopped, "ended": ended}
    stopped = _end_remains(path) if state and not folder.is_held(path) else []
    note = f"; ended {len(stopped)} processes that a killed supervisor left" if stopped else ""
    print(f"stellwerk is not up on {path}{note}", file=progress, flush=True)
    return {"stopped": stopped, "ended": ended}


def _say_what_ends(path: Path, progress: IO[str] | None) -> list[str]:
    """The runs and replicas that still run on this node; that they cannot be named stops nothing."""
    if not any((path / services.AGENT_FOLDER / "allocations").glob("*")):
        return []
    command = services.list_command(path)
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=LIST_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return []
    names = found.stdout.splitlines()
    for name in names:
        print(f"{name} is running: ending it", file=progress, flush=True)
    return names


def _end_remains(path: Path) -> list[str]:
    """After a killed supervisor: its processes, whose names are returned, and the commands of its agent."""
    state = folder.read_state(path)
    names = folder.living_names(state)
    folder.end_leftovers(state)
    if (path / services.AGENT_FOLDER).exists():
        subprocess.run(services.sweep_command(path), stdout=subprocess.DEVNULL, timeout=30, check=False)
    return names


def status(data_dir: Path, check_timeout_seconds: float = CHECK_TIMEOUT_SECONDS) -> dict[str, Any]:
    """Every process with its health now, and every address; raises when the stack is not up.

    What does not answer within the time is not serving.
    """
    path = data_dir.expanduser().absolute()
    if not folder.is_held(path):
        raise LauncherError(
            "STACK_DOWN", f"No stack is up on {path}.", f"Start one with: {folder.up_command(path)}"
        )
    state = folder.read_state(path)
    internal = state.pop("internal", {})
    checks, created = internal.get("checks", {}), internal.get("create_times", {})

    def health(process: dict[str, Any]) -> str:
        if not is_alive(process["pid"], created.get(process["name"], 0.0)):
            return "DEAD"
        return "SERVING" if Check(*checks[process["name"]]).passes(check_timeout_seconds) else "NOT_SERVING"

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
