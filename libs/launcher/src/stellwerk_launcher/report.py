"""Progress lines: for the person at the terminal, and for the supervisor's own log."""

import contextlib
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import IO


def _nothing() -> None:
    """Nobody wants to know."""


class Reporter:
    """Writes each line to the terminal and to `logs/supervisor.log`; neither may end the stack."""

    def __init__(
        self,
        log: Path,
        *,
        detached: bool = False,
        stream: IO[str] | None = None,
        on_ready: Callable[[], None] = _nothing,
    ) -> None:
        self._log = log
        self._detached = detached
        self._stream = stream
        self._on_ready = on_ready

    def line(self, text: str) -> None:
        """One line of progress, or a thing that happened."""
        with contextlib.suppress(OSError):
            print(text, file=self._stream, flush=True)
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        with contextlib.suppress(OSError), self._log.open("a") as file:
            file.write(f"{now} {text}\n")

    def ready(self) -> None:
        """Everything is up. A detached supervisor lets go of its starter's terminal, which waits for this."""
        with contextlib.suppress(OSError):
            self._on_ready()
        if self._detached:
            null = os.open(os.devnull, os.O_RDWR)
            for stream in (sys.stdout, sys.stderr):
                os.dup2(null, stream.fileno())
            os.close(null)
