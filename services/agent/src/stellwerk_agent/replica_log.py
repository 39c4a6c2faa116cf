"""What a replica says, in the agent's own log: nobody else keeps it, and `stellwerk logs agent` shows it.

Bounded in length and rate, so that a script that prints a lot cannot fill the node's disk a second time
or hide what the agent says.
"""

import asyncio
import logging
import os
from collections.abc import Sequence
from pathlib import Path

_POLL_SECONDS = 0.5
_LINES_PER_POLL = 20
_BURST_LINES = 400
_LINE_CHARACTERS = 1_000
_READ_BYTES = 256 * 1024


class ReplicaLog:
    """Follows the log files of one replica; with `from_end` only what is written from now on."""

    def __init__(self, name: str, files: Sequence[Path], *, from_end: bool) -> None:
        # Not one of `logging.getLogger`, which would remember every replica for ever.
        self._logger = logging.Logger(name)
        self._logger.parent = logging.getLogger()
        self._files = [_Followed(path, from_end=from_end) for path in files]
        self._room = _BURST_LINES
        self._left_out = 0

    async def run(self) -> None:
        """Until it is cancelled; what was written by then is forwarded."""
        try:
            while True:
                self._forward()
                await asyncio.sleep(_POLL_SECONDS)
                self._room = min(_BURST_LINES, self._room + _LINES_PER_POLL)
        finally:
            self._forward(is_end=True)

    def _forward(self, *, is_end: bool = False) -> None:
        for file in self._files:
            for line in file.lines(is_end=is_end):
                if self._room > 0:
                    self._say_what_is_missing()
                    self._room -= 1
                    self._logger.info("%s", _printable(line))
                else:
                    self._left_out += 1
        if is_end:
            self._say_what_is_missing()

    def _say_what_is_missing(self) -> None:
        if self._left_out:
            self._logger.warning("%d lines were left out: it writes too many", self._left_out)
            self._left_out = 0


class _Followed:
    """One file that grows, or is not there yet."""

    def __init__(self, path: Path, *, from_end: bool) -> None:
        self._path = path
        self._position = path.stat().st_size if from_end and path.exists() else 0
        self._rest = ""

    def lines(self, *, is_end: bool) -> list[str]:
        """The lines that are new and whole; at the end also the last one."""
        *lines, self._rest = (self._rest + self._read()).split("\n")
        if len(self._rest) > _LINE_CHARACTERS or (is_end and self._rest):
            lines.append(self._rest)
            self._rest = ""
        return lines

    def _read(self) -> str:
        try:
            with open(self._path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                # What was cut begins anew; of very much only the end is read.
                self._position = max(self._position if self._position <= size else 0, size - _READ_BYTES)
                file.seek(self._position)
                data = file.read(_READ_BYTES)
        except OSError:
            return ""
        self._position += len(data)
        return data.decode(errors="replace")


def _printable(line: str) -> str:
    text = "".join(c if c.isprintable() or c == "\t" else "?" for c in line[:_LINE_CHARACTERS].rstrip())
    return f"{text} …" if len(line) > _LINE_CHARACTERS else text
