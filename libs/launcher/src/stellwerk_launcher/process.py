"""One child process: started tied to its parent, its output in a file, ended within a bound."""

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from stellwerk_launcher.context import ProcessSpec
from stellwerk_launcher.errors import LauncherError
from stellwerk_launcher.services import inherited_environment
from stellwerk_launcher.tied import tied_to_parent

LOG_LIMIT_BYTES = 16 * 1024 * 1024
POLL_SECONDS = 0.05


class Child:
    """A process of the stack and what became of it so far."""

    def __init__(self, spec: ProcessSpec, log: Path) -> None:
        self.spec = spec
        self.log = log
        self.restarts = 0
        self.last_reason = ""
        self.ready = False
        self.process: asyncio.subprocess.Process | None = None
        self.create_time = 0.0

    @property
    def pid(self) -> int | None:
        """None while it is not running."""
        running = self.process is not None and self.process.returncode is None
        return self.process.pid if self.process and running else None

    async def start(self) -> None:
        """Starts the process; its own session keeps the terminal's Ctrl-C away from it."""
        self.ready = False
        if self.spec.stale_file is not None:
            self.spec.stale_file.unlink(missing_ok=True)
        rotate(self.log)
        descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self.process = await asyncio.create_subprocess_exec(
                *tied_to_parent(self.spec.command),
                env=inherited_environment() | dict(self.spec.environment),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                start_new_session=True,
            )
        finally:
            os.close(descriptor)
        self.create_time = create_time(self.process.pid)

    async def wait_until_ready(self) -> None:
        """Returns when the health check passes; raises when the process ends or takes too long."""
        assert self.process is not None
        deadline = time.monotonic() + self.spec.ready_timeout_seconds
        while time.monotonic() < deadline:
            if self.process.returncode is not None:
                raise self._failure("PROCESS_DIED", f"{self.spec.name} ended at its start: {self.reason()}")
            # A check that passes for a process that is gone would have asked a stranger on its port.
            if await asyncio.to_thread(self.spec.check.passes) and self.process.returncode is None:
                self.ready = True
                return
            await asyncio.sleep(POLL_SECONDS)
        seconds = self.spec.ready_timeout_seconds
        raise self._failure("PROCESS_NOT_READY", f"{self.spec.name} was not ready within {seconds:.0f} s")

    def _failure(self, reason: str, message: str) -> LauncherError:
        return LauncherError(reason, f"{message}.", f"Its output is in {self.log}")

    def reason(self) -> str:
        """Why the process ended, with the last line that it wrote."""
        code = self.process.returncode if self.process else None
        if code is None:
            return "it runs"
        how = f"killed by {_signal_name(-code)}" if code < 0 else f"exit code {code}"
        # What it wrote before somebody else killed it is no reason.
        said = "" if code in (-signal.SIGKILL, -signal.SIGTERM) else last_line(self.log)
        return f"{how} ({said})" if said else how

    async def stop(self) -> None:
        """SIGTERM to the process, and after the bound SIGKILL to its group."""
        if self.process is None:
            return
        if self.pid is not None:
            _signal(self.process.pid, signal.SIGTERM)
            try:
                await asyncio.wait_for(self.process.wait(), self.spec.stop_timeout_seconds)
            except TimeoutError:
                self.last_reason = "did not stop in time: killed"
                _signal(-self.process.pid, signal.SIGKILL)
                await self.process.wait()
        self.ready = False


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"  # a real-time signal


def _signal(pid: int, number: int) -> None:
    """A negative number means the process group, as for kill(2)."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def create_time(pid: int) -> float:
    """When a process began, to tell it from a later one with the same number; 0 when it is gone."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return 0.0


def is_alive(pid: int | None, began: float) -> bool:
    """True when exactly that process still runs; a zombie does not."""
    if not pid:
        return False
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - began) < 0.01
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_until_gone(processes: Iterable[psutil.Process], timeout_seconds: float) -> list[psutil.Process]:
    """Returns those that still run at the end of the time.

    Not `psutil.wait_procs`: it also waits for the reaping of other people's zombies, which can take
    seconds where process 1 is a simple one.
    """
    waiting = list(processes)
    deadline = time.monotonic() + timeout_seconds
    while waiting and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        waiting = [process for process in waiting if is_alive(process.pid, process.create_time())]
    return waiting


def rotate(log: Path) -> None:
    """Keeps one earlier file, so that logs never take more than twice the limit at a start."""
    if log.exists() and log.stat().st_size > LOG_LIMIT_BYTES:
        log.replace(log.with_name(log.name + ".1"))


def shorten(log: Path) -> None:
    """Bounds the log of a running process: it writes in append mode, so cutting the file is safe."""
    if log.exists() and log.stat().st_size > LOG_LIMIT_BYTES:
        shutil.copyfile(log, log.with_name(log.name + ".1"))
        os.truncate(log, 0)


def last_line(log: Path) -> str:
    """The last line with text, cut to a length that fits a terminal."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip()[-300:] for line in reversed(lines) if line.strip()), "")
