"""What `run(mini_batch)` returned, as rows of a table or as a file for each file.

One element is one file that was scored, or for a table one row; None is a file that could not be scored.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Sequence
from typing import Any, TextIO

# The column of what has no name.
COLUMN = "prediction"
_JSON_LINES = ".jsonl"
# Of pandas, which writes them as nothing.
_MISSING = ("NAType", "NaTType")
_AS_TEXT = ("Decimal", "UUID", "Timedelta", "timedelta", "Path", "PosixPath")


class BadResult(Exception):
    """The result is none that a batch deployment can take; reason and sentence say why."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def elements(value: Any) -> tuple[list[Any], str]:
    """The elements of a DataFrame (dicts), Series, array, list or tuple, and the name of their column."""
    if hasattr(value, "itertuples") and hasattr(value, "columns"):
        columns = [str(column) for column in value.columns]
        if len(set(columns)) < len(columns):
            raise BadResult("RESULT_INVALID", "run() returned a DataFrame that has a column twice.")
        found = [dict(zip(columns, row)) for row in value.itertuples(index=False, name=None)]  # noqa: B905
        return found, COLUMN
    if isinstance(value, (list, tuple)):
        return list(value), COLUMN
    convert = getattr(value, "tolist", None)
    converted = convert() if callable(convert) else None
    if isinstance(converted, list):
        name = getattr(value, "name", None)
        return converted, COLUMN if name is None else str(name)
    raise BadResult(
        "RESULT_INVALID",
        f"run() returned a {type(value).__name__}; it must return a list, tuple, array, Series or DataFrame "
        "with one element for each file that was scored.",
    )


def write_table(folder: str, file_name: str, scored: Sequence[Any], name: str) -> None:
    """Writes the rows as CSV with a header, or as JSON lines; raises `BadResult` and `OSError`."""
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, file_name)
    try:
        if file_name.endswith(_JSON_LINES):
            lines = [_json(row if isinstance(row, dict) else {name: row}) for row in scored]
            with open(path, "w", encoding="utf-8", newline="") as file:
                file.writelines(f"{line}\n" for line in lines)
        else:
            _write_csv(path, [_cells(row, name) for row in scored])
    except (UnicodeEncodeError, RecursionError) as error:
        raise _not_writable(str(error)) from error


class _Lines:
    """Ends lines with a newline: `csv` quotes a carriage return only if its own line ends have one."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, line: str) -> object:
        return self._file.write(f"{line[:-2]}\n")


def _write_csv(path: str, rows: Sequence[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if not columns:
        raise BadResult("RESULT_INVALID", "run() returned rows without any column.")
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(_Lines(file), columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def write_by_file(folder: str, files: Sequence[str], found: Sequence[Any]) -> list[str]:
    """Writes element i for file i; returns the paths. Raises `BadResult` and `OSError`."""
    if len(found) != len(files):
        raise BadResult(
            "RESULT_COUNT_WRONG",
            f"run() returned {len(found)} elements for {len(files)} files. With a result for each file, the "
            "elements are those of the files, in their order: None for one that could not be scored.",
        )
    written = []
    for path, element in zip(files, found):  # noqa: B905  # Python 3.9 has no strict=
        if element is None:
            continue
        target = os.path.join(folder, f"{path}.json")
        os.makedirs(os.path.dirname(target), exist_ok=True)
        try:
            content = _json(element).encode()
        except (UnicodeEncodeError, RecursionError) as error:
            raise _not_writable(str(error)) from error
        with open(target, "wb") as file:
            file.write(content)
        written.append(f"{path}.json")
    return written


def _cells(row: Any, name: str) -> dict[str, Any]:
    """A row by its columns."""
    row = _plain(row)
    if isinstance(row, dict):
        return {column: _cell(value) for column, value in row.items()}
    if isinstance(row, list):
        return {str(number): _cell(value) for number, value in enumerate(row)}
    return {name: _cell(row)}


def _cell(value: Any) -> Any:
    """As pandas writes it: nothing for None and NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return _json(value) if isinstance(value, (dict, list)) else value


def _json(value: Any) -> str:
    return json.dumps(_spelled(_plain(value)), ensure_ascii=False, allow_nan=False)


def _spelled(value: Any) -> Any:
    """NaN and infinities, which JSON does not have, as the texts that stand for them in proto JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {name: _spelled(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_spelled(item) for item in value]
    return value


def _plain(value: Any) -> Any:
    """As None, text, numbers, lists and dicts; raises `BadResult` for what has no such form."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    kind = type(value).__name__
    if kind in _MISSING:
        return None
    for name in ("isoformat", "tolist", "item"):
        convert = getattr(value, name, None)
        if callable(convert):
            return _plain(convert())
    if kind in _AS_TEXT:
        return str(value)
    raise _not_writable(f"there is no form for a {kind}")


def _not_writable(why: str) -> BadResult:
    return BadResult("RESULT_NOT_WRITABLE", f"What run() returned cannot be written: {why[:200]}.")
