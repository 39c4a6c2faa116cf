"""What a record may be: bounds, and the JSON that each kind holds.

A refused record stops its sender for good, so everything that can be wrong is found
before a batch is taken, and said.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stellwerk_platform.content import check_path
from stellwerk_platform.errors import InvalidArgument
from stellwerk_protos.runs.v1 import ingest_pb2 as pb

NAME_LENGTH = 500
VALUE_BYTES = 1024 * 1024
# Kinds that change the run and are not listed.
ANNOTATIONS = (pb.RECORD_KIND_PARAM, pb.RECORD_KIND_TAG)
# What each chart cannot be drawn without (contracts.md 4.8).
_REQUIRED: Mapping[int, Mapping[str, type]] = {
    pb.RECORD_KIND_CONFUSION_MATRIX: {"class_labels": list, "matrix": list},
    pb.RECORD_KIND_ACCURACY_TABLE: {"probability_tables": list, "percentile_tables": list},
    pb.RECORD_KIND_RESIDUALS: {"bin_edges": list, "bin_counts": list},
    pb.RECORD_KIND_PREDICTIONS: {"bin_averages": list, "bin_errors": list},
}
# Azure's SDK wraps charts as {"schema_type": …, "schema_version": …, "data": {…}}.
_WRAPPED = "data"


def check(record: pb.Record) -> None:
    """Raises `InvalidArgument` (INVALID_RECORD) that says what is wrong."""
    if not 0 < len(record.name) <= NAME_LENGTH:
        _refuse(record, f"its name has {len(record.name):,} characters, not 1 to {NAME_LENGTH}")
    if (size := len(record.value.encode())) > VALUE_BYTES:
        _refuse(record, f"its value has {size:,} bytes, over {VALUE_BYTES:,}")
    if record.kind in ANNOTATIONS:
        return
    if record.kind == pb.RECORD_KIND_IMAGE:
        check_path(record.artifact)
        return
    rule = _RULES.get(record.kind)
    if rule is None:
        _refuse(record, f"its kind is {record.kind}, which is none")
        return
    if problem := rule(record.kind, _parse(record)):
        _refuse(record, problem)


def annotations(records: Sequence[pb.Record]) -> tuple[dict[str, str], dict[str, str]]:
    """Parameters (the first value stays) and tags (the last one does)."""
    params: dict[str, str] = {}
    tags: dict[str, str] = {}
    for record in records:
        if record.kind == pb.RECORD_KIND_PARAM:
            params.setdefault(record.name, record.value)
        elif record.kind == pb.RECORD_KIND_TAG:
            tags[record.name] = record.value
    return params, tags


def _parse(record: pb.Record) -> Any:
    try:
        return json.loads(record.value)
    except (ValueError, RecursionError) as error:
        _refuse(record, f"its value is no JSON: {str(error)[:200]}")


def _check_list(_: int, value: Any) -> str:
    if not isinstance(value, list):
        return "a list is a JSON list of numbers"
    wrong = next((index for index, item in enumerate(value) if not _is_number(item)), None)
    return "" if wrong is None else f"item {wrong} of the list is no number"


def _check_row(_: int, value: Any) -> str:
    if not isinstance(value, dict) or not value:
        return "a row is a JSON object with a column or more"
    wrong = next((key for key, item in value.items() if isinstance(item, dict | list)), None)
    return "" if wrong is None else f"column {wrong[:80]!r} of the row is no single value"


def _check_table(_: int, value: Any) -> str:
    if not isinstance(value, dict) or not value:
        return "a table is a JSON object with a column or more"
    wrong = next((key for key, item in value.items() if not isinstance(item, list)), None)
    if wrong is not None:
        return f"column {wrong[:80]!r} of the table is no list"
    lengths = {key: len(item) for key, item in value.items()}
    if len(set(lengths.values())) > 1:
        return f"the columns of the table differ in length: {dict(list(lengths.items())[:5])}"
    return ""


def _check_chart(kind: int, value: Any) -> str:
    if isinstance(value, dict) and isinstance(value.get(_WRAPPED), dict):
        value = value[_WRAPPED]
    if not isinstance(value, dict):
        return "a chart is a JSON object"
    for key, expected in _REQUIRED[kind].items():
        if not isinstance(value.get(key), expected):
            return f"{key!r} is missing or no {expected.__name__}"
    if kind == pb.RECORD_KIND_CONFUSION_MATRIX:
        return _check_matrix(value["class_labels"], value["matrix"])
    return ""


def _check_matrix(labels: list[Any], matrix: list[Any]) -> str:
    size = len(labels)
    if len(matrix) != size or any(not isinstance(row, list) or len(row) != size for row in matrix):
        return f"the matrix is not {size} x {size}, as the {size} class labels say"
    if not all(_is_number(cell) for row in matrix for cell in row):
        return "a cell of the matrix is no number"
    return ""


def _is_number(value: Any) -> bool:
    # As in proto JSON: JSON itself has no words for these.
    if value in ("NaN", "Infinity", "-Infinity"):
        return True
    return isinstance(value, int | float) and not isinstance(value, bool)


_RULES: Mapping[int, Callable[[int, Any], str]] = {
    pb.RECORD_KIND_LIST: _check_list,
    pb.RECORD_KIND_ROW: _check_row,
    pb.RECORD_KIND_TABLE: _check_table,
    **dict.fromkeys(_REQUIRED, _check_chart),
}


def _refuse(record: pb.Record, problem: str) -> None:
    raise InvalidArgument(
        "INVALID_RECORD",
        f"The record {record.name[:80]!r} cannot be stored: {problem}.",
        "Send JSON as docs/interfaces.md describes for its kind, or log a file as an artifact.",
        {"record": record.name[:80]},
    )
