"""Rows drawn at random while they go by, each with the same chance (Vitter 1985, Algorithm R)."""

import random
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, cast

from stellwerk_inference.monitors.compare import values as cells
from stellwerk_inference.monitors.compare.failures import CheckFailed

MAX_COLUMNS = 1_000
_MAX_NAMES, _NAME_LENGTH = 200_000, 200
# Values that are in memory at a time: 64 MB of numbers, up to 300 MB of rows with texts.
_MAX_VALUES = 8_000_000
_MAX_TEXTS = 100_000
_NAN = float("nan")


class Sample:
    """Up to `max_rows` rows; fewer when they are wide. With `only`, other columns are left out."""

    def __init__(self, max_rows: int, seed: int, only: frozenset[str] = frozenset()) -> None:
        self._max_rows = max_rows
        self._random = random.Random(seed)
        self._only = only
        self._slots: dict[str, int] = {}
        self._names: dict[str, None] = {}
        self._rows: list[Sequence[float | str | None]] = []
        # Each text once.
        self._texts: dict[str, str] = {}
        self.seen_count = 0

    @property
    def columns(self) -> list[str]:
        """Those that are kept, in the order in which they were seen first."""
        return list(self._slots)

    @property
    def names(self) -> list[str]:
        """The same with those that are left out."""
        return list(self._names)

    @property
    def row_count(self) -> int:
        """Rows that were drawn."""
        return len(self._rows)

    def add(self, row: Mapping[str, Any]) -> None:
        """Shows a row; raises `CheckFailed` for too many columns."""
        self.seen_count += 1
        place = self._place()
        if place is None and not self._has_new(row):
            return
        values = self._values(row)
        self._shrink()
        if place is None:
            return
        row_values = self._packed(values)
        if place < len(self._rows):
            self._rows[place] = row_values
        else:
            self._rows.append(row_values)
        self._shrink()

    def _packed(self, values: Sequence[Any]) -> Sequence[float | str | None]:
        """The values as numbers and texts, in little memory."""
        plain = [cells.plain(value) for value in values]
        try:
            # A text among them is a TypeError.
            return array("d", cast(list[float], [_NAN if value is None else value for value in plain]))
        except TypeError:
            if len(self._texts) > _MAX_TEXTS:
                self._texts.clear()
            return [self._texts.setdefault(v, v) if isinstance(v, str) else v for v in plain]

    def _place(self) -> int | None:
        capacity = self._capacity()
        if len(self._rows) < capacity:
            return len(self._rows)
        place = self._random.randrange(self.seen_count)
        return place if place < capacity else None

    def _capacity(self) -> int:
        return max(1, min(self._max_rows, _MAX_VALUES // max(1, len(self._slots))))

    def _has_new(self, row: Mapping[str, Any]) -> bool:
        return not row.keys() <= self._names.keys()

    def _values(self, row: Mapping[str, Any]) -> list[Any]:
        if self._has_new(row):
            self._learn(row)
        return [row.get(name) for name in self._slots]

    def _learn(self, row: Mapping[str, Any]) -> None:
        for name in row:
            if name not in self._names:
                self._names[name] = None
                # Longer names cannot be asked for, and would fill what tells of a check.
                if len(name) <= _NAME_LENGTH and (not self._only or name in self._only):
                    self._slots[name] = len(self._slots)
        if len(self._slots) > MAX_COLUMNS or len(self._names) > _MAX_NAMES:
            raise CheckFailed(
                "TOO_MANY_COLUMNS",
                f"The data has more than {MAX_COLUMNS:,} columns.",
                f"Name up to {MAX_COLUMNS:,} that count: `stellwerk monitor update … --columns a,b`.",
            )

    def _shrink(self) -> None:
        """What there is no room for any more, because rows became wider."""
        while len(self._rows) > self._capacity():
            self._rows[self._random.randrange(len(self._rows))] = self._rows[-1]
            self._rows.pop()

    def values(self, column: str) -> list[float | str | None]:
        """The column's values in the rows, as numbers or texts; None or NaN where a row has none."""
        slot = self._slots[column]
        return [row[slot] if slot < len(row) else None for row in self._rows]
