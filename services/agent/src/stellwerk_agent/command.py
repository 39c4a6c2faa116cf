"""The command of an allocation, seen from the agent: started once, found again, waited for, ended."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from stellwerk_agent import processes, shim
from stellwerk_agent.files import write_atomic
from stellwerk_platform import failpoints


@dataclass(frozen=True)
class Usage:
    """What a command used, with its descendants."""

    cpu_seconds: float
    disk_read_bytes: int
    disk_write_bytes: int


@dataclass(frozen=True)
class Exit:
    """How a command ended: `code` as `subprocess` has it (negative: a signal), or why there is none.

    `is_lost`: it may have run, and nobody knows how it ended. `time_ms`: when, in ms since 1970, or 0.
    """

    code: int | None
    error: str = ""
    is_lost: bool = False
    time_ms: int = field(default=0, compare=False)


class Command:
    """The command whose files lie in `folder`; its processes carry `marker` (the allocation's folder)."""

    def __init__(self, folder: Path, marker: Path) -> None:
        self._folder = folder
        self._marker = marker
        self._shim: subprocess.Popen[bytes] | None = None

    @property
    def was_started(self) -> bool:
        """Whether a shim has taken it: it is never started a second time."""
        return (self._folder / "claim.json").exists()

    @property
    def has_ended(self) -> bool:
        """Whether it is known how it ended."""
        return (self._folder / "exit.json").exists()

    async def start(
        self, argv: Sequence[str], folder: Path, environment: Mapping[str, str], log: Path
    ) -> None:
        """Starts the command in a session of its own; returns when it runs or could not be started."""
        spec = {
            "argv": list(argv),
            "folder": str(folder),
            "environment": {**environment, processes.MARKER: str(self._marker)},
            "log": str(log),
        }
        write_atomic(self._folder / "spec.json", json.dumps(spec).encode())
        failpoints.hit("agent.before_start")
        await asyncio.to_thread(self._start)
        failpoints.hit("agent.started")

    def _start(self) -> None:
        reader, writer = os.pipe()
        try:
            self._shim = subprocess.Popen(
                [sys.executable, "-I", "-S", shim.__file__, str(self._folder), str(writer)],
                cwd="/",
                env={"PATH": os.environ.get("PATH", os.defpath)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=[writer],
            )
            os.close(writer)
            os.read(reader, 1)
        finally:
            os.close(reader)

    async def wait(self) -> Exit:
        """Returns when the command has ended."""
        for name in ("claim.json", "command.json"):
            identity = _identity(self._folder / name)
            # Without its shim the command itself is waited for; nobody knows its exit code then.
            if _read(self._folder / "exit.json") is None and identity is not None:
                await processes.wait_for_end(identity["pid"], identity["start_ticks"])
        if self._shim is not None:
            await asyncio.to_thread(self._shim.wait)
        found = _read(self._folder / "exit.json")
        if found is None:
            return Exit(None, "its watcher was killed or found the disk full", is_lost=True)
        return Exit(found.get("returncode"), found.get("error", ""), time_ms=found["time_ms"])

    def usage(self) -> Usage | None:
        """What it used; None while it runs, or when nobody could count."""
        found = (_read(self._folder / "exit.json") or {}).get("usage")
        return None if found is None else Usage(**found)

    def processes(self) -> list[psutil.Process]:
        """Its living processes and all that they started. Blocks."""
        return processes.of_allocation(self._marker, session_of(self._folder))

    async def end(self, grace_seconds: float) -> None:
        """Ends the command and all that it started."""
        session = session_of(self._folder)
        await asyncio.to_thread(processes.end, self._marker, session, grace_seconds)


def is_living(folder: Path) -> bool:
    """Whether the command whose files lie in `folder` runs."""
    identity = _identity(folder / "command.json")
    if identity is None or (folder / "exit.json").exists():
        return False
    return processes.is_alive(identity["pid"], identity["start_ticks"])


def session_of(folder: Path) -> int | None:
    """The session of the command whose files lie in `folder`, None without one that is still its own."""
    identity = _identity(folder / "command.json")
    return None if identity is None else processes.session_of(identity["pid"], identity["start_ticks"])


def _identity(path: Path) -> dict[str, Any] | None:
    """Which process a file names, None when the machine was started anew since: it cannot live any more."""
    identity = _read(path)
    return identity if identity is not None and identity["boot"] == shim.boot() else None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    return found
