"""A bar for transfers that take longer than a second; without a terminal a line now and then."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SILENT_SECONDS = 1.0
LINE_SECONDS = 10.0
_MIB = 1024 * 1024
# Told the bytes that were moved since the last call; called from several threads.
Advance = Callable[[int], None]


@contextmanager
def bar(label: str, total_bytes: int, *, shown: bool | None = None) -> Iterator[Advance]:
    """Yields what to call with each moved part.

    `shown` None means: a bar if stderr is a terminal, else a line every ten seconds; False means nothing.
    """
    if shown is False:
        yield lambda moved: None
        return
    state = _Bar(label, total_bytes) if shown or sys.stderr.isatty() else _Lines(label, total_bytes)
    try:
        yield state.advance
    finally:
        state.stop()


class _Lines:
    def __init__(self, label: str, total_bytes: int) -> None:
        self._label, self._total = label, total_bytes
        self._done = 0
        self._said = time.monotonic()
        self._lock = threading.Lock()

    def advance(self, moved_bytes: int) -> None:
        with self._lock:
            self._done += moved_bytes
            if time.monotonic() - self._said >= LINE_SECONDS:
                self._said = time.monotonic()
                done, total = self._done / _MIB, self._total / _MIB
                share = self._done / max(self._total, 1)
                print(f"{self._label}: {done:,.0f} of {total:,.0f} MiB ({share:.0%})", file=sys.stderr)

    def stop(self) -> None:
        """Whoever called says that it is done."""


class _Bar:
    def __init__(self, label: str, total_bytes: int) -> None:
        self._label, self._total = label, total_bytes
        self._done = 0
        self._since = time.monotonic()
        self._lock = threading.Lock()
        self._progress: Any = None
        self._task: Any = None

    def advance(self, moved_bytes: int) -> None:
        with self._lock:
            self._done += moved_bytes
            if self._progress is None and time.monotonic() - self._since > SILENT_SECONDS:
                self._start()
            if self._progress is not None:
                self._progress.update(self._task, completed=self._done)

    def _start(self) -> None:
        from rich import progress
        from rich.console import Console

        self._progress = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.DownloadColumn(),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._progress.start()
        self._task = self._progress.add_task(self._label, total=self._total)

    def stop(self) -> None:
        with self._lock:
            if self._progress is not None:
                self._progress.stop()
