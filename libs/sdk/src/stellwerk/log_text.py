"""Log text for people: line times, the last lines, and what terminals do with control characters."""

import re
from datetime import UTC, datetime

# How much of the end of a log is looked at for its last lines, one after the other.
LAST_LINES_BYTES = (64 << 10, 1 << 20, 16 << 20)
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_CONTROL = re.compile(r"[\x00-\x07\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f]")


class Stamper:
    """Puts a time before each line of a text that comes in pieces."""

    def __init__(self) -> None:
        self._at_start = True

    def stamp(self, text: str, time_ms: int) -> str:
        """`text` with the time before each line that begins in it."""
        moment = datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        prefix = f"{moment}.{time_ms % 1000:03d}Z "
        lines = re.findall(r"[^\n]*\n|[^\n]+", text)
        result = []
        for line in lines:
            result.append(prefix + line if self._at_start else line)
            self._at_start = line.endswith("\n")
        return "".join(result)


def last_lines(data: bytes, lines: int) -> int | None:
    """Where the last so many lines begin; None if there are fewer."""
    position = len(data) - 1 if data.endswith(b"\n") else len(data)
    for _ in range(lines):
        position = data.rfind(b"\n", 0, position)
        if position < 0:
            return None
    return position + 1


class Plain:
    """What would be left on a terminal, for files and pipes: no colours, and of a progress bar that
    rewrites its line only the last state."""

    def __init__(self) -> None:
        self._line = ""

    def feed(self, text: str) -> str:
        """The lines that are whole now."""
        *whole, self._line = (self._line + text).split("\n")
        # A bar that never ends its line must not be kept whole.
        if "\r" in self._line[:-1]:
            self._line = self._line[self._line.rindex("\r", 0, len(self._line) - 1) :]
        return "".join(f"{clean(line)}\n" for line in whole)

    def end(self) -> str:
        """What is left of the last line."""
        line, self._line = self._line, ""
        return clean(line)


def clean(line: str) -> str:
    """One line as a terminal would show it in the end."""
    shown = _CONTROL.sub("", _ESCAPE.sub("", line)).rstrip("\r")
    result = ""
    for part in shown.split("\r"):
        # The carriage goes back, and what is written is over what was there.
        result = part + result[len(part) :]
    while "\b" in result:
        result = re.sub(r"[^\x08]?\x08", "", result, count=1)
    return result
