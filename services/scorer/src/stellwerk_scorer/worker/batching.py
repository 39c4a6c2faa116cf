"""Puts the rows of several requests into one call of `run`, and takes its result apart again.

Requests go together when their documents are alike but for the rows: lists of rows, or
objects with the same keys, of which some hold a list with one element a row and the others
are equal. A result goes apart when it has one element a row: an array or a list, a mapping
of them (single values in it are for everybody), or such a thing as JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


class Merged:
    """One document for several requests, and how many rows each of them brought."""

    def __init__(self, document: Any, rows: list[int]) -> None:
        self.document = document
        self.rows = rows


def merge(documents: Sequence[Any], keys: set[str]) -> Merged | None:
    """The documents as one; None if they do not go together. `keys` hold the rows of objects."""
    first = documents[0]
    if isinstance(first, list):
        if not all(_is_rows(document) for document in documents):
            return None
        return Merged([row for document in documents for row in document], list(map(len, documents)))
    if not isinstance(first, dict):
        return None
    row_keys = [key for key in first if key in keys]
    if not row_keys:
        return None
    rows = []
    for document in documents:
        if not isinstance(document, dict) or document.keys() != first.keys():
            return None
        if any(document[key] != first[key] for key in first if key not in row_keys):
            return None
        if not all(_is_rows(document[key]) for key in row_keys):
            return None
        counts = {len(document[key]) for key in row_keys}
        if len(counts) != 1:
            return None
        rows.append(counts.pop())
    merged = dict(first)
    for key in row_keys:
        merged[key] = [row for document in documents for row in document[key]]
    return Merged(merged, rows)


def _is_rows(value: Any) -> bool:
    """Whether this is a list of rows; one of plain numbers may be a single row."""
    return isinstance(value, list) and bool(value) and not isinstance(value[0], (int, float))


def split(value: Any, rows: Sequence[int]) -> list[Any] | None:
    """The result of each request, None if the value does not have one element a row."""
    if isinstance(value, str):
        try:
            parts = split(json.loads(value), rows)
        except (ValueError, RecursionError):
            return None
        return None if parts is None else [json.dumps(part) for part in parts]
    if isinstance(value, dict):
        return _split_mapping(value, rows)
    return _split_rows(value, rows)


def _split_mapping(value: dict[Any, Any], rows: Sequence[int]) -> list[Any] | None:
    parts: list[dict[Any, Any]] = [{} for _ in rows]
    apart = False
    for key, item in value.items():
        pieces = _split_rows(item, rows)
        if pieces is None and (isinstance(item, (list, tuple, dict)) or hasattr(item, "shape")):
            return None
        apart = apart or pieces is not None
        for position, part in enumerate(parts):
            part[key] = item if pieces is None else pieces[position]
    return parts if apart else None


def _split_rows(value: Any, rows: Sequence[int]) -> list[Any] | None:
    shape = getattr(value, "shape", None)
    if shape is None and not isinstance(value, (list, tuple)):
        return None
    if (shape is not None and not shape) or len(value) != sum(rows):
        return None
    parts, start = [], 0
    for count in rows:
        parts.append(value[start : start + count])
        start += count
    return parts
