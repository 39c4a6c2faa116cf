"""Rows in what was collected: the bodies of requests and answers in every shape that the platform scores.

Lists of rows, records, columns, the wrappings of Azure and MLflow, and the tensors of the Open
Inference Protocol. Rows without names get those of the baseline where their number fits.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Row = dict[str, Any]
PREDICTION = "prediction"
# What a column of the baseline is called that the model does not get but gives.
_TARGET = re.compile(r"target|label|labels|class|y|outcome|prediction", re.IGNORECASE)
# Keys around the rows: Azure, MLflow, TensorFlow Serving, Vertex.
_WRAPPERS = (
    *("dataframe_split", "dataframe_records", "input_data", "data", "Inputs", "inputs", "instances", "input"),
    *("Results", "results", "result", "predictions", "outputs", "output"),
)
_MOST_ERROR_STATUS = 400
_DEPTH = 6


class Unreadable(Exception):
    """This is no row of anything."""


class Reader:
    """Reads rows as those of a baseline with these columns, of which `chosen` are compared, in that order.

    `answers`: these are answers, in which a list of single values is one value a row.
    """

    def __init__(self, baseline: Sequence[str], chosen: Sequence[str] = (), *, answers: bool = False) -> None:
        targets = [name for name in baseline if _TARGET.fullmatch(name)]
        self._target = targets[0] if len(targets) == 1 else PREDICTION
        features = [name for name in baseline if name not in targets[:1]]
        self._names: dict[int, Sequence[str]] = {}
        # What is answered is no list of features, however many values it has.
        for names in ([] if answers else features, baseline, [self._target] if answers else [], chosen):
            if names:
                self._names[len(names)] = names
        self._names.setdefault(1, [self._target])
        self._answers = answers
        self._known = frozenset((*baseline, *chosen))

    def event(self, event: Any) -> list[Row]:
        """The rows of a CloudEvent, none of an answer that was an error; raises `Unreadable`."""
        if not isinstance(event, dict) or event.get("truncated") or "data" not in event:
            raise Unreadable
        status = event.get("statuscode")
        if isinstance(status, int) and status >= _MOST_ERROR_STATUS:
            return []
        return self.body(event["data"])

    def body(self, body: Any) -> list[Row]:
        """The rows of a body; raises `Unreadable`."""
        try:
            return list(self._rows(body, _DEPTH))
        except (RecursionError, TypeError, LookupError, ValueError, ArithmeticError):
            raise Unreadable from None

    def _rows(self, body: Any, depth: int) -> Iterator[Row]:
        if depth == 0:
            raise Unreadable
        if isinstance(body, str):
            # A script may answer with JSON inside JSON.
            yield from self._rows(json.loads(body), depth - 1)
        elif isinstance(body, dict):
            yield from self._of_object(body, depth)
        elif isinstance(body, list):
            yield from self._of_list(body)
        elif body is not None:
            yield self._named([body])

    def _of_list(self, items: list[Any]) -> Iterator[Row]:
        if all(isinstance(item, dict) for item in items):
            yield from items
        elif all(isinstance(item, list) for item in items):
            for item in items:
                yield self._named(list(_flat(item)))
        elif any(isinstance(item, (dict, list)) for item in items):
            raise Unreadable
        elif not self._answers and len(items) > 1 and len(items) in self._names:
            # One row without brackets around it, rather than as many rows of one value.
            yield self._named(items)
        else:
            for item in items:
                yield self._named([item])

    def _of_object(self, body: dict[str, Any], depth: int) -> Iterator[Row]:
        columns, data = body.get("columns"), body.get("data")
        if isinstance(columns, list) and isinstance(data, list):
            for values in data:
                yield dict(zip(map(str, columns), values, strict=True))
            return
        for key in ("inputs", "outputs"):
            if _are_tensors(body.get(key)):
                yield from self._of_tensors(body[key])
                return
        for key in _WRAPPERS:
            if key not in self._known and isinstance(body.get(key), (dict, list)):
                yield from self._rows(body[key], depth - 1)
                return
        yield from self._of_arguments(body, depth)

    def _of_arguments(self, body: dict[str, Any], depth: int) -> Iterator[Row]:
        """Named arguments of `run`: columns, a table among parameters, or one row."""
        lists = {name: value for name, value in body.items() if isinstance(value, list) and value}
        tables = [value for value in lists.values() if isinstance(value[0], (list, dict))]
        if len(tables) == 1:
            yield from self._rows(tables[0], depth - 1)
        elif lists and not tables and len({len(value) for value in lists.values()}) == 1:
            yield from _transposed(lists)
        elif any(not isinstance(value, (list, dict)) for value in body.values()):
            yield body
        else:
            raise Unreadable

    def _of_tensors(self, tensors: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
        columns: dict[str, list[Any]] = {}
        for tensor in tensors:
            count = int(tensor["shape"][0])
            values = list(_flat(tensor["data"]))
            width = len(values) // count if count else 0
            if count * width != len(values):
                raise Unreadable
            rows = [values[start : start + width] for start in range(0, len(values), width or 1)]
            name = str(tensor["name"])
            if len(tensors) == 1 and name not in self._known:
                for row in rows:
                    yield self._named(row)
                return
            for index in range(width):
                columns[name if width == 1 else f"{name}.{index}"] = [row[index] for row in rows]
        yield from _transposed(columns)

    def _named(self, values: Sequence[Any]) -> Row:
        names = self._names.get(len(values))
        return dict(zip(names, values, strict=True)) if names else dict(enumerated(values))


def enumerated(values: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Columns without names are called by their place, from 0."""
    return ((str(index), value) for index, value in enumerate(values))


def _are_tensors(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) and {"name", "shape", "data"} <= item.keys() for item in value)
    )


def _transposed(columns: Mapping[str, Sequence[Any]]) -> Iterator[Row]:
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for item in value:
            yield from _flat(item)
    else:
        yield value
