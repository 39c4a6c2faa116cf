"""The results of a job in one file: CSV tables under one header, JSON lines one after the other.

Each part is removed once it is in the whole, so that the disk holds the results little more than once.
"""

import csv
import os
import shutil
from collections.abc import Iterator, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import BinaryIO

JSON_LINES = ".jsonl"
_CHUNK_BYTES = 1 << 20
# Of a cell; `csv` alone takes no more than 128 Ki. It is in memory while it is written.
_MOST_CHARACTERS = 64 << 20


def concatenate(parts: Sequence[Path], target: Path) -> None:
    """Writes the parts into one file, in their order; blocks.

    Tables may differ in their columns: the whole has those of all of them, in the order in which they first
    appear, and rows are empty where their table has none.
    """
    with open(target, "wb") as out:
        if target.suffix == JSON_LINES:
            for part in parts:
                _append(part, 0, out)
        else:
            _concatenate_tables(parts, out)


def _concatenate_tables(parts: Sequence[Path], out: BinaryIO) -> None:
    csv.field_size_limit(_MOST_CHARACTERS)
    headers = [_header(part) for part in parts]
    columns = list(dict.fromkeys(column for names, _ in headers for column in names))
    # Both write to the same buffer.
    text = TextIOWrapper(out, encoding="utf-8", newline="", write_through=True)
    csv.writer(_Lines(text)).writerow(columns)
    for part, (names, size_bytes) in zip(parts, headers, strict=True):
        if names == columns:
            _append(part, size_bytes, out)
        else:
            _append_columns(part, columns, text)
    text.detach()


class _Lines:
    """Ends lines as the parts do: `csv` quotes a carriage return only if its own line ends have one."""

    def __init__(self, out: TextIOWrapper) -> None:
        self._out = out

    def write(self, line: str) -> object:
        return self._out.write(f"{line[:-2]}\n")


def _header(part: Path) -> tuple[list[str], int]:
    """The columns of a table, and the size of the record that has them, in bytes."""
    with open(part, "rb") as file:
        record = file.readline()
        # A name may hold line ends, within quotation marks.
        while record.count(b'"') % 2 and (line := file.readline()):
            record += line
    return next(csv.reader([record.decode()]), []), len(record)


def _append(part: Path, start: int, out: BinaryIO) -> None:
    with open(part, "rb") as file:
        file.seek(start)
        shutil.copyfileobj(file, out, _CHUNK_BYTES)
    os.unlink(part)


def _append_columns(part: Path, columns: Sequence[str], out: TextIOWrapper) -> None:
    with open(part, encoding="utf-8", newline="") as file:
        rows: Iterator[dict[str, str]] = csv.DictReader(file)
        csv.DictWriter(_Lines(out), columns, restval="").writerows(rows)
    os.unlink(part)
