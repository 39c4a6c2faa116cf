"""The tensor codec of the Open Inference Protocol: nested lists, flat lists and raw bytes.

Pure functions on lists of Python values, without numpy: requests are small, and a
dtype that numpy guesses would accept what the protocol forbids ([1, 2.5] as INT64).
"""

import struct
from collections.abc import Sequence
from itertools import chain
from math import isfinite, prod
from typing import Any

# datatype -> format character of `struct`, little-endian standard size
FORMATS = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
DATATYPES = (*FORMATS, "BYTES", "BF16")
_SIZES = {"BF16": 2, **{datatype: struct.calcsize(f"<{code}") for datatype, code in FORMATS.items()}}
_FLOATS = frozenset({"FP16", "FP32", "FP64", "BF16"})
MAX_RANK = 32
# A tensor without elements may still have this many empty rows, not more: they cost memory.
_MAX_EMPTY_ROWS = 1 << 20
_LENGTH = struct.Struct("<I")
_ARRAY_DATATYPES = {
    "bool": "BOOL",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    **{f"{sign.lower()}int{bits}": f"{sign}INT{bits}" for sign in ("U", "") for bits in (8, 16, 32, 64)},
}


class TensorError(ValueError):
    """The values are no tensor of the given type and shape; the text says why."""


def check_datatype(datatype: str) -> None:
    """Raises `TensorError` for a type that the protocol does not have."""
    if datatype not in DATATYPES:
        raise TensorError(f"the datatype {datatype!r} is none of {', '.join(DATATYPES)}")


def check_shape(shape: Sequence[int]) -> int:
    """The number of elements of a shape; raises `TensorError` if it is none."""
    if len(shape) > MAX_RANK:
        raise TensorError(f"the shape has {len(shape)} dimensions; the limit is {MAX_RANK}")
    if any(type(size) is not int or size < 0 for size in shape):
        raise TensorError(f"the shape {list(shape)} must hold whole numbers of zero or more")
    count = prod(shape)
    if count == 0 and prod(size for size in shape if size) > _MAX_EMPTY_ROWS:
        raise TensorError(f"the shape {list(shape)} has no elements but too many rows")
    return count


def flatten(data: Any, shape: Sequence[int], datatype: str) -> list[Any]:
    """The values of `data`, nested as `shape` says or flat, checked for the type; row-major."""
    check_datatype(datatype)
    if datatype == "BF16":
        raise TensorError("BF16 has no form in JSON or typed contents; send it as raw bytes")
    count = check_shape(shape)
    values = data if isinstance(data, list) else [data]
    if values and isinstance(values[0], list):
        for depth, size in enumerate(shape):
            if depth:
                values = _open(values, size, depth)
            elif len(values) != size:
                raise TensorError(f"dimension 0 has {len(values)} elements, the shape says {size}")
    if len(values) != count and not (count == 0 and not values):
        raise TensorError(f"{len(values)} values do not fill the shape {list(shape)}, which takes {count}")
    return convert(values, datatype)


def _open(rows: list[Any], size: int, depth: int) -> list[Any]:
    for row in rows:
        if not isinstance(row, list):
            raise TensorError(f"dimension {depth} holds a {type(row).__name__} where a list must be")
        if len(row) != size:
            raise TensorError(f"a row of dimension {depth} has {len(row)} elements, the shape says {size}")
    return list(chain.from_iterable(rows))


def convert(values: Sequence[Any], datatype: str) -> list[Any]:
    """The values as the Python type of the datatype; raises `TensorError` for those that are not."""
    kinds = set(map(type, values))
    if datatype == "BYTES":
        _only(kinds, {str}, datatype)
        return list(values)
    if datatype == "BOOL":
        _only(kinds, {bool}, datatype)
        return list(values)
    if datatype.startswith("FP"):
        _only(kinds, {int, float}, datatype)
        try:
            return list(map(float, values))
        except OverflowError:
            raise TensorError(f"a value does not fit {datatype}") from None
    _only(kinds, {int}, datatype)
    low, high = integer_range(datatype)
    if values and not (low <= min(values) and max(values) <= high):
        raise TensorError(f"a value does not fit {datatype}, which holds {low} to {high}")
    return list(values)


def _only(kinds: set[type], allowed: set[type], datatype: str) -> None:
    wrong = kinds - allowed
    if wrong:
        names = ", ".join(sorted(kind.__name__ for kind in wrong))
        raise TensorError(f"{datatype} does not hold values of type {names}")


def integer_range(datatype: str) -> tuple[int, int]:
    """The smallest and the largest value of an integer type."""
    bits = int(datatype.removeprefix("U").removeprefix("INT"))
    return (0, 2**bits - 1) if datatype.startswith("U") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def nest(values: Sequence[Any], shape: Sequence[int]) -> Any:
    """Nested lists of a shape from flat values; the value itself for a shape without dimensions."""
    if not shape:
        return values[0]
    rows: list[Any] = list(values)
    for depth in range(len(shape) - 1, 0, -1):
        size = shape[depth]
        rows = [rows[start * size : (start + 1) * size] for start in range(prod(shape[:depth]))]
    return rows


def measure(value: Any) -> tuple[tuple[int, ...], list[Any]]:
    """Shape and flat values of nested lists; a single value has the shape [1]. Raises `TensorError`."""
    if not isinstance(value, list):
        return (1,), [value]
    shape = [len(value)]
    values = value
    while values and isinstance(values[0], list):
        if len(shape) == MAX_RANK:
            raise TensorError(f"it is nested deeper than {MAX_RANK}")
        size = len(values[0])
        values = _open(values, size, len(shape))
        shape.append(size)
    return tuple(shape), values


def guess_datatype(values: Sequence[Any]) -> str:
    """The type of values that came without one, from JSON; raises `TensorError` if there is none."""
    kinds = set(map(type, values))
    if kinds <= {float, int}:
        if float in kinds or not kinds:
            return "FP64"
        return "INT64" if max(values) <= integer_range("INT64")[1] else "UINT64"
    for kind, datatype in ((bool, "BOOL"), (str, "BYTES")):
        if kinds == {kind}:
            return datatype
    raise TensorError(f"it holds values of type {', '.join(sorted(kind.__name__ for kind in kinds))}")


def datatype_of_array(dtype: str) -> str | None:
    """The datatype of a numpy-like dtype, None for those that the protocol does not have."""
    return _ARRAY_DATATYPES.get(dtype)


def check_raw(raw: bytes, shape: Sequence[int], datatype: str) -> None:
    """Raises `TensorError` unless the bytes are a tensor of this type and shape."""
    check_datatype(datatype)
    count = check_shape(shape)
    if datatype == "BYTES":
        texts(_split(raw, count))
    elif len(raw) != count * _SIZES[datatype]:
        wanted = count * _SIZES[datatype]
        raise TensorError(f"{len(raw)} raw bytes are not the {wanted} of {datatype} {list(shape)}")


def decode_raw(raw: bytes, shape: Sequence[int], datatype: str) -> list[Any]:
    """The values in raw little-endian bytes; BYTES as text, BF16 as the floats that they stand for."""
    if datatype == "BYTES":
        check_datatype(datatype)
        return texts(_split(raw, check_shape(shape)))
    check_raw(raw, shape, datatype)
    count = len(raw) // _SIZES[datatype]
    if datatype == "BF16":
        # The upper half of a 32-bit float.
        wide = b"".join(b"\0\0" + raw[start : start + 2] for start in range(0, len(raw), 2))
        return list(struct.unpack(f"<{count}f", wide))
    return list(struct.unpack(f"<{count}{FORMATS[datatype]}", raw))


def is_finite(values: Sequence[Any], datatype: str) -> bool:
    """Whether no value is NaN or an infinity."""
    # The sum is not finite if a value is not, and seldom else.
    return datatype not in _FLOATS or isfinite(sum(values)) or all(map(isfinite, values))


def encode_raw(values: Sequence[Any], datatype: str) -> bytes:
    """The values as raw little-endian bytes; raises `TensorError` if one does not fit."""
    if datatype == "BYTES":
        encoded = [value.encode() for value in values]
        return b"".join(_LENGTH.pack(len(item)) + item for item in encoded)
    try:
        return struct.pack(f"<{len(values)}{FORMATS[datatype]}", *values)
    except (struct.error, OverflowError) as error:
        raise TensorError(f"a value does not fit {datatype}: {error}") from None


def texts(items: Sequence[bytes]) -> list[str]:
    """BYTES elements as text, for `run` gets JSON; raises `TensorError` for what is not UTF-8."""
    try:
        return [item.decode() for item in items]
    except UnicodeDecodeError:
        raise TensorError(
            "a BYTES element is not UTF-8, but run() gets JSON text: send binary data base64-encoded"
        ) from None


def _split(raw: bytes, count: int) -> list[bytes]:
    items: list[bytes] = []
    position = 0
    while position < len(raw):
        end = position + _LENGTH.size
        if end > len(raw):
            raise TensorError("the raw BYTES end within a length")
        (size,) = _LENGTH.unpack_from(raw, position)
        if end + size > len(raw):
            raise TensorError("the raw BYTES end within an element")
        items.append(raw[end : end + size])
        position = end + size
    if len(items) != count:
        raise TensorError(f"{len(items)} raw BYTES elements, the shape takes {count}")
    return items
