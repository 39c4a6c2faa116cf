"""Reads the files of a baseline: CSV, JSON lines, Parquet and NumPy, each row by row or block by block."""

import csv
import gzip
import io
import json
import re
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from stellwerk_inference.monitors.compare import kinds, values
from stellwerk_inference.monitors.compare.failures import CheckFailed
from stellwerk_inference.monitors.compare.rows import Reader, Row, Unreadable, enumerated

_LINE_BYTES = 16 << 20
_SNIFFED = 16 << 10
_ARRAY_BYTES = 1 << 30
_BLOCK_ROWS = 4_096


# What pandas calls the index of a table, which is no column of it.
_INDEX = re.compile(r"|Unnamed: \d+|__index_level_\d+__")


def read(path: str, file: Path) -> Iterator[Row]:
    """The rows of a file that was chosen by its name; raises `CheckFailed`."""
    with _told(path):
        for row in _READERS[_kind(path)](file):
            yield {name: value for name, value in row.items() if not _INDEX.fullmatch(name)}


def names(path: str, file: Path) -> Iterator[str]:
    """The columns of such a file, one more than once where only its rows have them; raises `CheckFailed`."""
    kind = _kind(path)
    with _told(path):
        found: Iterable[str]
        if kind == kinds.CSV:
            found, _ = _head(file)
        elif kind == kinds.PARQUET:
            found = _parquet_names(file)
        elif kind == kinds.JSON_LINES:
            found = (name for row in _json_lines(file) for name in row)
        else:
            found = next(_READERS[kind](file), {})
        for name in found:
            if not _INDEX.fullmatch(name):
                yield name


def _kind(path: str) -> tuple[str, ...]:
    kind = kinds.kind_of(path)
    assert kind is not None, "the file was chosen by its name"
    return kind


@contextmanager
def _told(path: str) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    # The libraries raise what they like for files that are none of their kind: TokenError, for one.
    except Exception as error:
        raise CheckFailed(
            "BASELINE_UNREADABLE",
            f"{path[-200:]} cannot be read: {str(error)[:300]}",
            "Name the file or folder of the baseline that counts with `--baseline-path`, or another version.",
        ) from error


def _open(file: Path) -> IO[bytes]:
    with file.open("rb") as opened:
        packed = opened.read(2) == b"\x1f\x8b"
    return gzip.open(file, "rb") if packed else file.open("rb")  # type: ignore[return-value]  # both are streams


def _csv(file: Path) -> Iterator[Row]:
    columns, has_names = _head(file)
    with _text(file) as text:
        lines = csv.reader(text, delimiter=_delimiter(file))
        if has_names:
            next(lines, None)
        for line in lines:
            if line:
                yield dict(zip(columns, line, strict=False))


def _head(file: Path) -> tuple[list[str], bool]:
    """The columns of a CSV file, and whether its first line names them; else they have numbers."""
    csv.field_size_limit(min(sys.maxsize, _LINE_BYTES))
    with _text(file) as text:
        first = next(csv.reader(text, delimiter=_delimiter(file)), [])
    # Names are different from each other, and none is a number; that of an index is empty.
    has_names = len({*first}) == len(first) and all(values.number(name) is None for name in first)
    return [name.strip() for name in first] if has_names else [str(i) for i in range(len(first))], has_names


def _text(file: Path) -> io.TextIOWrapper:
    return io.TextIOWrapper(_open(file), "utf-8-sig", errors="replace", newline="")


def _delimiter(file: Path) -> str:
    with _text(file) as text:
        start = text.read(_SNIFFED)
    try:
        return csv.Sniffer().sniff(start, delimiters=",;\t|").delimiter
    except csv.Error:
        return ","


def _json_lines(file: Path) -> Iterator[Row]:
    reader = Reader([])
    with _open(file) as opened:
        while line := opened.readline(_LINE_BYTES):
            if len(line) == _LINE_BYTES:
                raise ValueError(f"a line has over {_LINE_BYTES:,} bytes")
            if not line.strip():
                continue
            found = json.loads(line)
            try:
                # Collected data that was exported may be a baseline, too.
                is_event = isinstance(found, dict) and "specversion" in found and "source" in found
                yield from reader.event(found) if is_event else reader.body(found)
            except Unreadable:
                continue


def _parquet(file: Path) -> Iterator[Row]:
    # Few baselines are Parquet, and the library takes its time to load.
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(file) as opened:
            for batch in opened.iter_batches(_BLOCK_ROWS):
                yield from batch.to_pylist()
    except ArrowException as error:
        raise ValueError(str(error)) from error


def _parquet_names(file: Path) -> list[str]:
    from pyarrow import ArrowException, parquet

    try:
        found: list[str] = parquet.read_schema(file).names
    except ArrowException as error:
        raise ValueError(str(error)) from error
    return found


def _npy(file: Path) -> Iterator[Row]:
    yield from _of_arrays({"": np.load(file, mmap_mode="r", allow_pickle=False)})


def _npz(file: Path) -> Iterator[Row]:
    with zipfile.ZipFile(file) as packed:
        size_bytes = sum(member.file_size for member in packed.infolist())
    if size_bytes > _ARRAY_BYTES:
        raise ValueError(f"its arrays have {size_bytes:,} bytes, over {_ARRAY_BYTES:,}")
    with np.load(file, allow_pickle=False) as arrays:
        yield from _of_arrays({name: arrays[name] for name in arrays.files})


def _of_arrays(arrays: dict[str, Any]) -> Iterator[Row]:
    """Arrays of equal length side by side: those with one value a row by name, the others by place."""
    lengths = {len(array) if array.ndim else 0 for array in arrays.values()}
    if len(lengths) != 1:
        raise ValueError("its arrays do not have one length")
    tables = [name for name, array in arrays.items() if array.ndim > 1]
    (length,) = lengths
    for start in range(0, length, _BLOCK_ROWS):
        blocks = {name: array[start : start + _BLOCK_ROWS] for name, array in arrays.items()}
        for index in range(min(_BLOCK_ROWS, length - start)):
            row: Row = {}
            for name, block in blocks.items():
                row |= _cells(name, block[index], len(tables))
            yield row


def _cells(name: str, item: Any, table_count: int) -> Row:
    if item.dtype.names:
        return {field: item[field].item() for field in item.dtype.names}
    if item.ndim == 0:
        return {name or "0": item.item()}
    cells = enumerated(item.reshape(-1).tolist())
    return {(place if table_count == 1 else f"{name}.{place}"): value for place, value in cells}


_READERS: dict[tuple[str, ...], Callable[[Path], Iterator[Row]]] = {
    kinds.CSV: _csv,
    kinds.JSON_LINES: _json_lines,
    kinds.PARQUET: _parquet,
    kinds.NPY: _npy,
    kinds.NPZ: _npz,
}
