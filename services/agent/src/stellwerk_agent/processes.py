"""Processes of an allocation: who they are, and their end.

A process belongs to an allocation by its session or by the variable
STELLWERK_ALLOCATION, which holds the allocation's folder: a grandchild that called
setsid still has it.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

log = logging.getLogger(__name__)
MARKER = "STELLWERK_ALLOCATION"
_FIRST_POLL_SECONDS, _LONGEST_POLL_SECONDS = 0.01, 0.5


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def is_alive(pid: int, started_ticks: int) -> bool:
    """Whether this very process lives: a pid alone may have been given away anew."""
    return start_ticks(pid) == started_ticks


def session_of(pid: int, started_ticks: int) -> int | None:
    """The session that this process began, None when its number belongs to somebody else by now."""
    now = start_ticks(pid)
    return None if now is not None and now != started_ticks else pid


async def wait_for_end(pid: int, started_ticks: int) -> None:
    """Returns when this very process has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    try:
        if not is_alive(pid, started_ticks):
            return
        loop.add_reader(descriptor, _resolve, ended)
        await ended
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def of_allocation(folder: Path, session: int | None) -> list[psutil.Process]:
    """All living processes of an allocation; `session` is that of its command."""
    marker = f"{MARKER}={folder}".encode()
    found = []
    # Read directly: to look at every process through psutil takes a tenth of a second.
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal() and _belongs(int(entry.name), marker, session):
            try:
                found.append(psutil.Process(int(entry.name)))
            except psutil.NoSuchProcess:
                continue
    return found


def cpu_seconds(found: Iterable[psutil.Process]) -> float:
    """Seconds of CPU that these have used, with those of their children that have ended. Blocks."""
    total = 0.0
    for process in found:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue  # it has just ended; its parent has its times
        total += times.user + times.system + times.children_user + times.children_system
    return total


def _belongs(pid: int, marker: bytes, session: int | None) -> bool:
    try:
        if pid == os.getpid() or start_ticks(pid) is None:
            return False
        if session is not None and os.getsid(pid) == session:
            return True
        return marker in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def end(folder: Path, session: int | None, grace_seconds: float) -> None:
    """SIGTERM to all, and after the grace SIGKILL until none is left that takes signals from us. Blocks."""
    deadline = time.monotonic() + grace_seconds
    number, pause = signal.SIGTERM, _FIRST_POLL_SECONDS
    told: set[psutil.Process] = set()
    untouchable: set[psutil.Process] = set()
    # Looked for again each time: what was forked in between is in nobody's list.
    while living := [process for process in of_allocation(folder, session) if process not in untouchable]:
        remaining_seconds = deadline - time.monotonic()
        if remaining_seconds <= 0 and number != signal.SIGKILL:
            number, pause = signal.SIGKILL, _FIRST_POLL_SECONDS
        for process in living:
            if number == signal.SIGKILL or process not in told:
                told.add(process)
                if not _signal(process, number):
                    untouchable.add(process)
        time.sleep(min(pause, remaining_seconds) if remaining_seconds > 0 else pause)
        # To look through all processes of a machine is work.
        pause = min(pause * 1.5, _LONGEST_POLL_SECONDS)


def _signal(process: psutil.Process, number: signal.Signals) -> bool:
    """False for a process of somebody else: the command became another user, and stays."""
    try:
        process.send_signal(number)
    except psutil.AccessDenied:
        log.warning("%s belongs to another user and goes on", process)
        return False
    except psutil.Error:
        pass  # it was faster
    return True
