"""The data folder of a stack: may it be used, who holds it, and what its `stack.json` says."""

import errno
import fcntl
import json
import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from stellwerk_launcher.credentials import write_private
from stellwerk_launcher.errors import LauncherError
from stellwerk_launcher.process import create_time, is_alive, wait_until_gone

# Below it come environments and blobs with paths of some 300 bytes more, and scripts in environments
# name their interpreter in a first line that tools cut; this leaves room for all of them.
LONGEST_PATH_BYTES = 400
LEAST_FREE_BYTES = 512 * 1024 * 1024
LEFTOVER_TIMEOUT_SECONDS = 30.0
KILL_TIMEOUT_SECONDS = 5.0
STATE_FILE = "stack.json"
LOGS_FOLDER = "logs"
# ENOENT: /proc, where nobody can make a folder.
_REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT, errno.EIO)


def default_data_dir() -> Path:
    """`$STELLWERK_DATA_DIR`, else a folder of the user."""
    return Path(os.environ.get("STELLWERK_DATA_DIR") or Path.home() / ".local" / "share" / "stellwerk")


def up_command(data_dir: Path) -> str:
    """How a person starts the stack of this folder."""
    if data_dir.expanduser().absolute() == default_data_dir().expanduser().absolute():
        return "stellwerk up"
    return f"stellwerk up --data-dir {shlex.quote(str(data_dir))}"


def prepare(data_dir: Path) -> Path:
    """Makes the folder with mode 0700 and returns its absolute path; raises when it cannot serve."""
    path = data_dir.expanduser().absolute()
    if len(os.fsencode(path)) > LONGEST_PATH_BYTES:
        raise LauncherError(
            "PATH_TOO_LONG",
            f"The path of the data folder has more than {LONGEST_PATH_BYTES} bytes.",
            "Choose a shorter one with --data-dir.",
        )
    with translated(path):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
        (path / LOGS_FOLDER).mkdir(mode=0o700, exist_ok=True)
        probe = path / f".writable.{os.getpid()}"
        probe.write_bytes(b"stellwerk")
        probe.unlink()
        if shutil.disk_usage(path).free < LEAST_FREE_BYTES:
            raise OSError(errno.ENOSPC, "less than 512 MiB are free")
    return path


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turns what the file system refuses into errors that say what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise LauncherError(
                "DISK_FULL",
                f"There is not enough space for {path}: {error.strerror}.",
                "Free at least 512 MiB, or choose another disk with --data-dir.",
            ) from error
        if error.errno == errno.ENAMETOOLONG:
            raise LauncherError(
                "PATH_TOO_LONG", f"The path {path} is too long.", "Choose a shorter one with --data-dir."
            ) from error
        if error.errno not in _REFUSALS:
            raise
        raise LauncherError(
            "DATA_DIR_NOT_WRITABLE",
            f"The data folder {path} cannot be used: {error.strerror}.",
            "Choose a folder of your own with --data-dir.",
        ) from error


class FolderLock:
    """Held by the supervisor for as long as it lives; the kernel frees it however the process ends."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / "lock"
        self._descriptor = -1

    def acquire(self) -> bool:
        """False when another supervisor holds the folder."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Lets the next one in."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def is_held(data_dir: Path) -> bool:
    """True while a supervisor runs on this folder."""
    if not (data_dir / "lock").exists():
        return False
    lock = FolderLock(data_dir)
    free = lock.acquire()
    lock.release()
    return not free


def read_state(data_dir: Path) -> dict[str, Any]:
    """What `stack.json` says; empty when there is none or it is torn."""
    try:
        state: dict[str, Any] = json.loads((data_dir / STATE_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return state


def write_state(data_dir: Path, state: dict[str, Any]) -> None:
    """Replaces `stack.json`; it carries passwords, so only its owner reads it."""
    write_private(data_dir / STATE_FILE, json.dumps(state, indent=2), durable=False)


def take(data_dir: Path) -> None:
    """Says at once whose folder it is, before anything is started; what an earlier start left is kept."""
    state = read_state(data_dir) | {"state": "starting"}
    state.pop("error", None)
    supervisor = {"pid": os.getpid(), "create_time": create_time(os.getpid())}
    state["internal"] = state.get("internal", {}) | {"supervisor": supervisor}
    write_state(data_dir, state)


def note_error(data_dir: Path, error: LauncherError) -> None:
    """Keeps why a start failed, for those who wait for it; a full disk keeps nothing."""
    with suppress(OSError):
        write_state(data_dir, read_state(data_dir) | {"error": error.as_dict()})


def supervisor_of(state: dict[str, Any]) -> psutil.Process | None:
    """The process that a `stack.json` names, None when it is gone."""
    found = state.get("internal", {}).get("supervisor", {})
    try:
        return psutil.Process(found["pid"]) if is_alive(found.get("pid"), found["create_time"]) else None
    except (KeyError, psutil.NoSuchProcess):
        return None


def leftovers(state: dict[str, Any]) -> list[psutil.Process]:
    """Recorded processes that still run although their supervisor is gone."""
    return [psutil.Process(process["pid"]) for process in _living(state)]


def living_names(state: dict[str, Any]) -> list[str]:
    """The names of the recorded processes that run."""
    return [process["name"] for process in _living(state)]


def _living(state: dict[str, Any]) -> list[dict[str, Any]]:
    created = state.get("internal", {}).get("create_times", {})
    processes: list[dict[str, Any]] = state.get("processes", [])
    return [found for found in processes if is_alive(found.get("pid"), created.get(found.get("name"), 0.0))]


def end_leftovers(state: dict[str, Any]) -> int:
    """Ends them: their parent's death told them to stop already, so those that linger are killed."""
    found = leftovers(state)
    for process in found:
        _quietly(process.terminate)
    lingering = wait_until_gone(found, LEFTOVER_TIMEOUT_SECONDS)
    for process in lingering:
        _quietly(process.kill)
    wait_until_gone(lingering, KILL_TIMEOUT_SECONDS)
    return len(found)


def _quietly(action: Any) -> None:
    try:
        action()
    except psutil.NoSuchProcess:
        return
