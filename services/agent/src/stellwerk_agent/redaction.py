"""Hides the values of secrets in what a run prints, also where a value is cut in two by a chunk's end.

A byte of a value becomes `*`, so that positions in the log stay those of the file. What could be the
beginning of a value at the end of a piece is held back until more is known.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress

# Shorter values would blacken ordinary text.
SHORTEST_BYTES = 4
# Values of several lines, keys for example, are often printed line by line.
_SHORTEST_LINE_BYTES = 8


class Redactor:
    """The values to hide. Given more, it hides those too from then on."""

    def __init__(self) -> None:
        # With the failure table of each (Knuth, Morris and Pratt, 1977).
        self._values: dict[bytes, list[int]] = {}

    def add(self, values: Iterable[bytes]) -> None:
        """Hides these, and how they look with surrounding space cut off, line by line, and in JSON."""
        for value in values:
            for form in _forms(value):
                if form not in self._values:
                    self._values[form] = _failures(form)

    def release(self, data: bytes, *, is_end: bool = False) -> bytes:
        """The beginning of `data` that can be shown, less the values; with `is_end` all of it.

        What is left out is to be given again, with what follows it.
        """
        if not self._values:
            return data
        held = max(_held(data, value, failures) for value, failures in self._values.items())
        found = [span for value in self._values for span in _occurrences(data, value)]
        shown = bytearray(data)
        for begin, end in found:
            shown[begin:end] = b"*" * (end - begin)
        if is_end:
            # A value that was cut off by the end: some of it is as bad as all of it.
            if held >= SHORTEST_BYTES:
                shown[-held:] = b"*" * held
            return bytes(shown)
        cut = len(data) - held
        # A value that lies across the cut would not be known again by its second half.
        for begin, end in sorted(found, reverse=True):
            cut = begin if begin < cut < end else cut
        return bytes(shown[:cut])

    def text(self, text: str) -> str:
        """A whole text less the values."""
        return self.release(text.encode(errors="replace"), is_end=True).decode(errors="replace")


def _forms(value: bytes) -> set[bytes]:
    whole = value.strip()
    lines = {line.strip() for line in whole.splitlines()} if b"\n" in whole else set()
    forms = {whole, *(line for line in lines if len(line) >= _SHORTEST_LINE_BYTES)}
    # Bytes that are no text look like nothing in JSON.
    with suppress(UnicodeDecodeError):
        forms |= {json.dumps(form.decode())[1:-1].encode() for form in forms}
    return {form for form in forms if len(form) >= SHORTEST_BYTES}


def _occurrences(data: bytes, value: bytes) -> Iterator[tuple[int, int]]:
    """Begin and end of each, also of those that overlap."""
    at = data.find(value)
    while at >= 0:
        yield at, at + len(value)
        at = data.find(value, at + 1)


def _failures(value: bytes) -> list[int]:
    """For each beginning of `value`, the length of its longest proper beginning that is also its end."""
    table, length = [0] * len(value), 0
    for index in range(1, len(value)):
        while length and value[index] != value[length]:
            length = table[length - 1]
        length += value[index] == value[length]
        table[index] = length
    return table


def _held(data: bytes, value: bytes, failures: list[int]) -> int:
    """The length of the longest end of `data` with which `value` could begin, less than all of it."""
    length = 0
    for byte in data[max(0, len(data) - len(value) + 1) :]:
        while length and byte != value[length]:
            length = failures[length - 1]
        length += byte == value[length]
    return length
