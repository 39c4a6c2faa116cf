"""What a value is: a number, a text, or missing; the same in text files and JSON: 1, 1.0 and "1" agree."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# As pandas reads CSV files, and what is no finite number.
_MISSING = frozenset(
    {
        *("", "nan", "-nan", "na", "n/a", "#n/a", "<na>", "null", "none", "nat"),
        *("inf", "+inf", "-inf", "infinity", "+infinity", "-infinity"),
    }
)
_TRUTH = {"true": 1.0, "false": 0.0}
_TEXT_LENGTH = 100


def is_missing(value: Any) -> bool:
    """Also what is no single value, and numbers that are not finite."""
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, str):
        return value.strip().lower() in _MISSING
    return value is None or isinstance(value, (list, dict, tuple, bytes))


def number(value: Any) -> float | None:
    """The value as a finite number, truth values as 1 and 0; None for anything else."""
    if isinstance(value, str):
        text = value.strip().lower()
        if text in _TRUTH:
            return _TRUTH[text]
        if "_" in text:
            return None
        value = text
    try:
        found = float(value)
    except (ValueError, TypeError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def plain(value: Any) -> float | str | None:
    """The value as a number, else as a text, None for one that is missing."""
    if type(value) is float:
        return value if math.isfinite(value) else None
    if (found := number(value)) is not None:
        return found
    return None if is_missing(value) else str(value).strip()[:_TEXT_LENGTH]


def category(value: Any) -> str:
    """The value as the name of a category, numbers in one form."""
    found = number(value)
    return str(value).strip()[:_TEXT_LENGTH] if found is None else f"{found:.10g}"


def numbers(column: Sequence[Any]) -> tuple[NDArray[np.float64], bool]:
    """The values as numbers, NaN for those that are missing or none; and whether all that are there are."""
    found = np.full(len(column), np.nan)
    all_numbers = True
    for index, value in enumerate(column):
        # Most are.
        parsed = value if type(value) is float else number(value)
        if parsed is not None and not math.isfinite(parsed):
            parsed = None
        if parsed is not None:
            found[index] = parsed
        elif all_numbers and not is_missing(value):
            all_numbers = False
    return found, all_numbers
