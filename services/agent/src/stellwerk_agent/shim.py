"""Starts one command, waits for it and writes down how it ended. Standard library only.

Run as a script: `python -I -S shim.py FOLDER [FD]`. It outlives the agent. Several
shims may be started for one folder by agents that died in between: the first one
claims it, the others leave. FD is closed once the command runs or cannot run.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from types import FrameType
from typing import Any

_RESERVED_BYTES = 4096


def main(folder: str, started_fd: int = -1) -> int:
    """Returns 0 always: how the command ended stands in `exit.json`."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # A handler, because an ignored signal would stay ignored in the command.
        signal.signal(number, _stay)
    if not _claim(folder):
        return 0
    # A disk that the command fills, perhaps at once, must not hide who it is and how it ended.
    reserve(folder, "command.json")
    reserve(folder, "exit.json")
    with open(os.path.join(folder, "spec.json"), encoding="utf-8") as file:
        spec: dict[str, Any] = json.load(file)
    try:
        child = _start(spec)
    except (OSError, ValueError) as error:
        write(folder, "exit.json", {"error": str(error), "time_ms": _now_ms()})
        return 0
    write(folder, "command.json", _identity(child.pid))
    # It has the environment, and with it what a replica shows to others; nobody needs it again.
    os.unlink(os.path.join(folder, "spec.json"))
    if started_fd >= 0:
        os.close(started_fd)
    code = child.wait()
    write(folder, "exit.json", {"returncode": code, "time_ms": _now_ms(), "usage": _usage()})
    return 0


def _stay(number: int, frame: FrameType | None) -> None:
    """The command ends first."""


def _claim(folder: str) -> bool:
    own = os.path.join(folder, f"claim.{os.getpid()}")
    with open(own, "w", encoding="utf-8") as file:
        json.dump(_identity(os.getpid()), file)
    try:
        # Unlike O_EXCL, a link brings the content with it.
        os.link(own, os.path.join(folder, "claim.json"))
    except FileExistsError:
        return False
    finally:
        os.unlink(own)
    return True


def _start(spec: "dict[str, Any]") -> "subprocess.Popen[bytes]":
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    log = os.open(spec["log"], flags, 0o600)
    try:
        return subprocess.Popen(
            spec["argv"],
            cwd=spec["folder"],
            env=spec["environment"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    finally:
        os.close(log)


def _identity(pid: int) -> "dict[str, object]":
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        start_ticks = int(file.read().rpartition(")")[2].split()[19])
    return {"pid": pid, "start_ticks": start_ticks, "boot": boot()}


def boot() -> str:
    """Which start of the machine this is: after another one, pid and ticks may be somebody else's."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def _usage() -> "dict[str, float]":
    """What the command used, with all of its descendants that somebody waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        # Counted in blocks of 512 bytes.
        "disk_read_bytes": usage.ru_inblock * 512,
        "disk_write_bytes": usage.ru_oublock * 512,
    }


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def reserve(folder: str, name: str) -> None:
    """Takes the room for a file that `write` is going to write."""
    _write(os.path.join(folder, name) + ".new", " " * _RESERVED_BYTES)


def write(folder: str, name: str, value: object) -> None:
    """Writes a file that is whole or not there, also after a power cut."""
    path = os.path.join(folder, name)
    _write(path + ".new", json.dumps(value))
    os.rename(path + ".new", path)


def _write(path: str, text: str) -> None:
    # Not truncated: that would give the reserved room away. JSON ends well with the blanks that stay.
    with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else -1))
