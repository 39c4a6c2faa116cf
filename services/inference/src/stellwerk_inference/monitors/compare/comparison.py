"""The comparison as a whole: samples of both sides, the columns that both have, and what the metrics say.

Request and result are JSON: the request as `Request` has it, the result as a `MonitorCheck` in proto JSON.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from stellwerk_inference.monitors.compare import baseline, columns
from stellwerk_inference.monitors.compare.columns import Pair
from stellwerk_inference.monitors.compare.failures import CheckFailed
from stellwerk_inference.monitors.compare.fetch import Blob, bring
from stellwerk_inference.monitors.compare.known import listed, missing_column
from stellwerk_inference.monitors.compare.rows import Reader, Row, Unreadable
from stellwerk_inference.monitors.compare.sample import Sample

_LINE_BYTES = 8 << 20
# Of a result, which goes into an event: shares beyond are left out, then whole entries.
_SHARES_BYTES, _MOST_BYTES = 256 << 10, 512 << 10
_ANSWERS = ("response", "model_outputs")


@dataclass(frozen=True)
class Threshold:
    """A metric by the name of its enum, the column or "", and what is past."""

    metric: str
    column: str
    threshold: float


@dataclass(frozen=True)
class Request:
    """What to compare. Times are those of events, `start` counts and `end` does not."""

    collection: str
    start: datetime
    end: datetime
    baseline: Sequence[Blob]
    collected: Sequence[Blob]
    columns: Sequence[str]
    thresholds: Sequence[Threshold]
    min_rows: int
    max_rows: int
    seed: int

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> "Request":
        """The request in its JSON."""
        return cls(
            **{
                **found,
                "start": datetime.fromisoformat(found["start"]),
                "end": datetime.fromisoformat(found["end"]),
                "baseline": [Blob(**blob) for blob in found["baseline"]],
                "collected": [Blob(**blob) for blob in found["collected"]],
                "thresholds": [Threshold(**entry) for entry in found["thresholds"]],
            }
        )


def compare(request: Request, folder: Path) -> dict[str, Any]:
    """The result; raises `CheckFailed`."""
    before = Sample(request.max_rows, request.seed, frozenset(request.columns))
    for blob, file in bring(request.baseline, folder):
        for row in baseline.read(blob.path, file):
            before.add(row)
    if not before.row_count:
        raise CheckFailed(
            "BASELINE_EMPTY", "The files of the baseline have no rows.", "Name another version or path."
        )
    collected = _Collected(request, before.names)
    for _, file in bring(request.collected, folder):
        with file.open("rb") as lines:
            collected.read(lines)
    result = {
        "baselineRowCount": before.row_count,
        "rowCount": collected.sample.row_count,
        "unreadableCount": collected.unreadable_count,
    }
    collected.check()
    if collected.sample.row_count < request.min_rows:
        return result
    return {**result, "columns": report(request, before, collected.sample)}


class _Collected:
    """The rows of collected events in the window that have a column of the baseline."""

    def __init__(self, request: Request, baseline_columns: Sequence[str]) -> None:
        wanted = frozenset(request.columns or baseline_columns)
        self._request, self._wanted, self._baseline = request, wanted, baseline_columns
        answers = request.collection in _ANSWERS
        self._reader = Reader(baseline_columns, request.columns, answers=answers)
        self.sample = Sample(request.max_rows, request.seed, wanted)
        self.unreadable_count = 0
        self._strange: Sequence[str] = ()

    def read(self, lines: IO[bytes]) -> None:
        """Takes the events of a file; what is torn or too long is counted."""
        while line := lines.readline(_LINE_BYTES):
            try:
                rows = self._rows(json.loads(line))
            except (ValueError, TypeError, RecursionError, Unreadable):
                self.unreadable_count += 1
                continue
            for row in rows:
                self.sample.add(row)

    def _rows(self, event: Any) -> Iterable[Row]:
        if not isinstance(event, dict):
            raise Unreadable
        if not self._request.start <= datetime.fromisoformat(str(event.get("time"))) < self._request.end:
            return []
        rows = self._reader.event(event)
        if rows and not any(self._wanted & row.keys() for row in rows):
            self._strange = list(rows[0])
            raise Unreadable
        return [row for row in rows if self._wanted & row.keys()]

    def check(self) -> None:
        """Raises `CheckFailed` when there are rows, and none has a column of the baseline."""
        if self._strange and not self.sample.row_count:
            raise CheckFailed(
                "NO_COMMON_COLUMNS",
                f"The baseline has {listed(self._baseline)}; collected rows have {listed(self._strange)}.",
                "Name the columns in the order in which the model gets them: `stellwerk monitor update … "
                "--columns a,b,c`.",
            )


def report(request: Request, before: Sample, now: Sample) -> list[dict[str, Any]]:
    """The entries of the result, the largest first; raises `CheckFailed` for what cannot be compared."""
    entries = sorted(
        _entries(request, before, now), key=lambda e: (not e["drifted"], -e["value"], e["column"])
    )
    if not entries:
        raise CheckFailed(
            "NOTHING_COMPARED",
            "None of the metrics compares any of the columns.",
            "Use psi or jensen-shannon, which compare numbers and categories.",
        )
    size_bytes, kept = 0, []
    for entry in entries:
        if size_bytes + len(json.dumps(entry)) > _SHARES_BYTES:
            for field in ("bins", "baselineShares", "shares"):
                del entry[field]
        size_bytes += len(json.dumps(entry))
        if size_bytes <= _MOST_BYTES:
            kept.append(entry)
    return kept


def _entries(request: Request, before: Sample, now: Sample) -> Iterator[dict[str, Any]]:
    for column in _common(request, before, now):
        pair = Pair.of(before.values(column), now.values(column))
        for metric, (threshold, is_named) in _metrics_of(column, request.thresholds).items():
            if columns.fits(metric, pair):
                yield _entry(column, metric, threshold, pair)
            elif is_named:
                kind = "categories" if pair.categorical else "numbers"
                raise CheckFailed(
                    "METRIC_DOES_NOT_FIT",
                    f"{column} has {kind}, which {metric} does not compare.",
                    "Use psi or jensen-shannon, ks for numbers, or chi-square for categories.",
                )


def _common(request: Request, before: Sample, now: Sample) -> Sequence[str]:
    """The columns to compare; raises `CheckFailed` for one that was asked for and is not there."""
    named = [*request.columns, *(entry.column for entry in request.thresholds if entry.column)]
    for column in named:
        if request.columns and column not in request.columns:
            raise CheckFailed(
                "COLUMN_NOT_FOUND",
                f"{column!r} has a threshold, but is not among the {listed(request.columns)} to compare.",
                "Correct the columns or the thresholds of the monitor.",
            )
        for has, side in ((before, "The baseline"), (now, "What was collected")):
            if column not in has.columns:
                raise missing_column(column, has.names, side)
    return request.columns or [column for column in before.columns if column in now.columns]


def _metrics_of(column: str, thresholds: Sequence[Threshold]) -> dict[str, tuple[float, bool]]:
    """By metric the threshold, and whether it is for this column alone."""
    found = {entry.metric: (entry.threshold, False) for entry in thresholds if not entry.column}
    found |= {entry.metric: (entry.threshold, True) for entry in thresholds if entry.column == column}
    return found


def _entry(column: str, metric: str, threshold: float, pair: Pair) -> dict[str, Any]:
    value, p_value = columns.value(metric, pair)
    before_rows = float(pair.baseline_counts.sum()) + pair.baseline_missing
    rows = float(pair.counts.sum()) + pair.missing
    entry = {
        "column": column,
        "metric": metric,
        "value": value,
        "threshold": threshold,
        "drifted": value > threshold,
        "categorical": pair.categorical,
        "bins": list(pair.labels),
        "baselineShares": (pair.baseline_counts / before_rows).round(6).tolist(),
        "shares": (pair.counts / rows).round(6).tolist(),
        "baselineMissingShare": pair.baseline_missing / before_rows,
        "missingShare": pair.missing / rows,
    }
    return entry if p_value is None else {**entry, "pValue": p_value}
