"""Ends all that a stopped agent left running on purpose: `python -m stellwerk_agent.sweep FOLDER`.

With `--list` after the folder it ends nothing. Either way stdout gets the name of every run and replica
that is ended by this, one a line.
"""

import contextlib
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from google.protobuf.message import DecodeError

from stellwerk_agent import processes
from stellwerk_agent.command import is_living, session_of
from stellwerk_agent.files import write_atomic
from stellwerk_agent.folder import NODE_STOPPED, AllocationFolder

_GRACE_SECONDS = 5.0


def sweep(folder: Path) -> None:
    """Ends the processes of every allocation below the agent's folder: SIGTERM, 5 s, SIGKILL."""
    with ThreadPoolExecutor(max_workers=32) as threads:
        list(threads.map(_sweep_one, _allocations(folder)))


def living(folder: Path) -> list[str]:
    """The names of the runs and replicas whose command runs, below the agent's folder."""
    owners = (_owner(path) for path in _allocations(folder) if _lives(path))
    return sorted(owner for owner in owners if owner)


def _allocations(folder: Path) -> list[Path]:
    return [path for path in (folder.absolute() / "allocations").glob("*") if path.is_dir()]


def _lives(allocation: Path) -> bool:
    try:
        return is_living(allocation / "command")
    except (OSError, ValueError, KeyError):
        return False


def _owner(allocation: Path) -> str:
    try:
        return AllocationFolder(allocation).allocation.owner
    except (OSError, ValueError, DecodeError):
        # Of a damaged folder nobody can say whose it is.
        return ""


def _sweep_one(allocation: Path) -> None:
    if _lives(allocation):
        # On a full disk the reason is a signal, as before.
        with contextlib.suppress(OSError):
            write_atomic(allocation / f"{NODE_STOPPED}.json", json.dumps({}).encode())
    try:
        session = session_of(allocation / "command")
    except (OSError, ValueError, KeyError):
        session = None
    processes.end(allocation, session, _GRACE_SECONDS)


def main(arguments: list[str]) -> None:
    """Prints what is ended, then ends it."""
    if len(arguments) not in (1, 2) or arguments[1:] not in ([], ["--list"]):
        sys.exit("usage: python -m stellwerk_agent.sweep FOLDER [--list]")
    for name in living(Path(arguments[0])):
        print(name, flush=True)
    if len(arguments) == 1:
        sweep(Path(arguments[0]))


if __name__ == "__main__":
    main(sys.argv[1:])
