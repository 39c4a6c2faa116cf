"""What may be logged, checked and turned into what is stored. Standard library only.

Numbers of numpy, torch and the like are taken by their shape (`item`, `tolist`), so that none of them
need be installed. What cannot be logged raises `ValueError` at the call, where its cause is.
"""

import itertools
import json
import math
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

LONGEST_NAME = 500
# Of parameters and tags, in characters.
LONGEST_KEY = 250
LONGEST_TEXT = 8_000
LARGEST_VALUE_BYTES = 1 << 20
# Long lists and tables are cut into parts of about this size, which are read as one again.
PART_BYTES = 256 * 1024
_LARGEST_STEP = 2**63 - 1
# As in proto JSON: JSON itself has no words for these.
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def name(given: object, what: str = "name") -> str:
    """Text of 1 to 500 characters."""
    if not isinstance(given, str):
        raise ValueError(f"a {what} is text, not {type(given).__name__}")
    if not 1 <= len(given) <= LONGEST_NAME:
        raise ValueError(f"a {what} has 1 to {LONGEST_NAME} characters; this one has {len(given)}")
    try:
        given.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the {what} {given!r} is not valid Unicode") from None
    return given


def number(label: str, value: Any) -> float:
    """A float; NaN and infinities are kept, integers too large for one become infinite."""
    if isinstance(value, str | bytes | bytearray):
        raise ValueError(f"the value of {label!r} is a number, not {type(value).__name__}")
    if not hasattr(value, "__float__") and not hasattr(value, "__index__"):
        if not hasattr(value, "item"):
            raise ValueError(f"the value of {label!r} is a number, not {type(value).__name__}")
        value = value.item()
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"the value of {label!r} is not one number: {error}") from error


def step(given: Any) -> int:
    """A whole number of 64 bits."""
    try:
        found = operator.index(given)
    except TypeError:
        raise ValueError(f"a step is a whole number, not {type(given).__name__}") from None
    if not -_LARGEST_STEP - 1 <= found <= _LARGEST_STEP:
        raise ValueError(f"the step {found} does not fit into 64 bits")
    return found


def pair(key: object, value: Any, what: str) -> tuple[str, str]:
    """A parameter or tag: text as it is, everything else as people write it."""
    label = name(key, f"name of a {what}")
    if len(label) > LONGEST_KEY or "\0" in label:
        raise ValueError(f"the name of a {what} has up to {LONGEST_KEY} characters, and no NUL")
    if isinstance(value, bytes | bytearray):
        raise ValueError(f"the value of {label!r} is bytes, not text")
    plain = _plain(label, value)
    text = _fits(label, dump(label, plain) if isinstance(plain, dict | list) else str(plain))
    if len(text) > LONGEST_TEXT or "\0" in text:
        raise ValueError(f"the value of {label!r} has up to {LONGEST_TEXT:,} characters, and no NUL")
    return label, text


def dump(label: str, value: Any) -> str:
    """JSON; NaN and infinities are the texts "NaN", "Infinity" and "-Infinity"."""
    return json.dumps(_plain(label, value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def fitting(label: str, value: Any) -> str:
    """JSON that is sent as one record."""
    return _fits(label, dump(label, value))


def load(given: str) -> Any:
    """What `dump` wrote, with its NaN and infinities as numbers again."""
    return _restored(json.loads(given))


def plain(value: Any) -> Any:
    """A value as strict JSON has it."""
    return _plain("value", value)


def items(label: str, value: Any) -> list[Any]:
    """A list, from anything that is one: lists, tuples, ranges, arrays, columns of data frames."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise ValueError(f"the value of {label!r} is a list, not {type(value).__name__}")
    return list(value)


def table(label: str, given: Any) -> dict[str, list[Any]]:
    """Columns of the same length."""
    if not isinstance(given, Mapping) or not given:
        raise ValueError(f"the table {label!r} is a dictionary of columns, not {type(given).__name__}")
    columns = {name(key, "name of a column"): items(label, column) for key, column in given.items()}
    lengths = {len(column) for column in columns.values()}
    if len(lengths) > 1:
        raise ValueError(f"the columns of the table {label!r} differ in length: {sorted(lengths)}")
    return columns


def row(label: str, columns: Mapping[str, Any]) -> str:
    """A row as JSON: single values by column."""
    plain = {name(key, "name of a column"): _plain(label, cell) for key, cell in columns.items()}
    for key, cell in plain.items():
        if isinstance(cell, dict | list):
            raise ValueError(
                f"the column {key!r} of {label!r} holds a {type(cell).__name__}, no single value"
            )
    return fitting(label, plain)


def chart(label: str, given: Any, keys: Sequence[str]) -> dict[str, Any]:
    """A chart in Azure's shape, as a dictionary or its JSON text; its `keys` hold lists.

    Azure's own wrapper, {"schema_type": ..., "data": {...}}, is taken off.
    """
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError as error:
            raise ValueError(f"the value of {label!r} is not JSON: {error}") from None
    plain = _plain(label, given)
    if isinstance(plain, dict):
        plain = plain.get("data", plain)
    if not isinstance(plain, dict):
        raise ValueError(f"the value of {label!r} is a dictionary, not {type(given).__name__}")
    missing = [key for key in keys if not isinstance(plain.get(key), list)]
    if missing:
        raise ValueError(f"the value of {label!r} has no list {', '.join(missing)}")
    return plain


def matrix(label: str, given: Any) -> dict[str, Any]:
    """A confusion matrix: as many rows and columns as labels, all cells numbers."""
    plain = chart(label, given, ("class_labels", "matrix"))
    size, rows = len(plain["class_labels"]), plain["matrix"]
    if len(rows) != size or any(not isinstance(row, list) or len(row) != size for row in rows):
        raise ValueError(f"the matrix of {label!r} is not {size} x {size}, as its class labels say")
    if not all(map(_is_number, itertools.chain.from_iterable(rows))):
        raise ValueError(f"a cell of the matrix of {label!r} is no number")
    return plain


def list_parts(label: str, values: Any) -> Iterator[str]:
    """A list as JSON, in parts that each fit into a record."""
    plain = [_plain(label, value) for value in items(label, values)]
    plain = [int(value) if isinstance(value, bool) else value for value in plain]
    for value in plain:
        if not _is_number(value):
            raise ValueError(f"the list {label!r} holds a {type(value).__name__}, not only numbers")
    for rows in _ranges(label, [_size(value) for value in plain]):
        yield fitting(label, plain[rows])


def table_parts(label: str, given: Any) -> Iterator[str]:
    """A table as JSON, in parts of whole rows that each fit into a record."""
    columns = {key: [_plain(label, cell) for cell in cells] for key, cells in table(label, given).items()}
    overhead = sum(_size(key) for key in columns)
    sizes = [sum(map(_size, row)) for row in zip(*columns.values(), strict=True)]
    for rows in _ranges(label, sizes, overhead):
        yield fitting(label, {key: cells[rows] for key, cells in columns.items()})


def _ranges(label: str, sizes: list[int], overhead: int = 2) -> Iterator[slice]:
    """Cuts items of these sizes in bytes into consecutive parts; one empty part for no items."""
    start, total = 0, overhead
    for index, size in enumerate(sizes):
        if index > start and total + size > PART_BYTES:
            yield slice(start, index)
            start, total = index, overhead
        total += size
    yield slice(start, len(sizes))


def _size(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False).encode()) + 1


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return value in _NOT_FINITE
    return isinstance(value, int | float) and not isinstance(value, bool)


def _fits(label: str, given: str) -> str:
    try:
        size = len(given.encode())
    except UnicodeEncodeError:
        raise ValueError(f"the value of {label!r} is not valid Unicode") from None
    if size > LARGEST_VALUE_BYTES:
        raise ValueError(f"the value of {label!r} has {size} bytes, more than {LARGEST_VALUE_BYTES}")
    return given


def _plain(label: str, value: Any) -> Any:
    """Only what JSON has."""
    match value:
        case None | bool() | str():
            return value
        case int():
            return int(value)
        case float():
            if math.isfinite(value):
                return float(value)
            return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        case Mapping():
            return {str(key): _plain(label, item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset() | range():
            return [_plain(label, item) for item in value]
    for method in ("tolist", "item"):
        if hasattr(value, method):
            return _plain(label, getattr(value, method)())
    if hasattr(value, "__float__"):
        return _plain(label, float(value))
    if hasattr(value, "isoformat"):
        return str(value.isoformat())
    raise ValueError(f"the value of {label!r} holds a {type(value).__name__}, which is no JSON")


def _restored(value: Any) -> Any:
    if isinstance(value, str):
        return _NOT_FINITE.get(value, value)
    if isinstance(value, list):
        return [_restored(item) for item in value]
    if isinstance(value, dict):
        return {key: _restored(item) for key, item in value.items()}
    return value
