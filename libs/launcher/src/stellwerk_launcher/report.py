"""Progress lines: for the person at the terminal, and for the supervisor's own log."""

import contextlib
import os
import sys
from datetime import UTC, datetime
from pathlib import Path


class Reporter:
    """Writes each line to the terminal and to `logs/supervisor.log`; neither may end the stack."""

    def __init__(self, log: Path, *, detached: bool = False) -> None:
        self._log = log
        self._detached = detached

    def line(self, text: str) -> None:
        """One line of progress, or a thing that happened."""
        with contextlib.suppress(OSError):
            print(text, flush=True)
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        with contextlib.suppress(OSError), self._log.open("a") as file:
            file.write(f"{now} {text}\n")

    def ready(self) -> None:
        """A detached supervisor lets go of its starter's terminal: the starter waits for this."""
        if self._detached:
            null = os.open(os.devnull, os.O_RDWR)
            for stream in (sys.stdout, sys.stderr):
                os.dup2(null, stream.fileno())
            os.close(null)
