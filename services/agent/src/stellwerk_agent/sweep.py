"""Ends all that a stopped agent left running on purpose: `python -m stellwerk_agent.sweep FOLDER`."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stellwerk_agent import processes
from stellwerk_agent.command import session_of

_GRACE_SECONDS = 5.0


def sweep(folder: Path) -> None:
    """Ends the processes of every allocation below the agent's folder: SIGTERM, 5 s, SIGKILL."""
    allocations = [path for path in (folder.absolute() / "allocations").glob("*") if path.is_dir()]
    with ThreadPoolExecutor(max_workers=32) as threads:
        list(threads.map(_sweep_one, allocations))


def _sweep_one(allocation: Path) -> None:
    try:
        session = session_of(allocation / "command")
    except (OSError, ValueError, KeyError):
        session = None
    processes.end(allocation, session, _GRACE_SECONDS)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m stellwerk_agent.sweep FOLDER")
    sweep(Path(sys.argv[1]))
