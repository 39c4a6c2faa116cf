"""Whether a baseline has the columns that somebody names, as far as can be told without reading its rows."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from stellwerk_inference.monitors.compare import baseline
from stellwerk_inference.monitors.compare.failures import CheckFailed
from stellwerk_inference.monitors.compare.fetch import Blob, bring

_SHOWN_COLUMNS, _SHOWN_CHARACTERS = 8, 40
_MOST_COMPARED = 5_000
# Of files with names that no table would have.
_MOST_NAMES = 200_000


@dataclass(frozen=True)
class Request:
    """The files of the baseline, and the columns that are to be there."""

    baseline: Sequence[Blob]
    columns: Sequence[str]

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> "Request":
        """The request in its JSON."""
        return cls([Blob(**blob) for blob in found["baseline"]], found["columns"])


def look(request: Request, folder: Path) -> dict[str, Any]:
    """Nothing; raises `CheckFailed` for a column that is not there, and for files that cannot be read.

    Reads until all are found: of a table its head, of JSON lines as many as it takes.
    """
    missing, known = set(request.columns), dict[str, None]()
    # The first file has all of them, as a rule.
    for blob, file in bring(request.baseline, folder, at_a_time=1):
        for name in baseline.names(blob.path, file):
            missing.discard(name)
            if len(known) < _MOST_NAMES:
                known[name] = None
            if not missing:
                return {}
    if not known:
        raise CheckFailed(
            "BASELINE_EMPTY", "The files of the baseline have no rows.", "Name another version or path."
        )
    raise missing_column(next(column for column in request.columns if column in missing), known)


def missing_column(column: str, known: Iterable[str], side: str = "The baseline") -> CheckFailed:
    """What to say of a column that is not among those that are."""
    names = list(known)
    near = [name for name in names if name.lower() == column.lower()]
    near = near or get_close_matches(column, names[:_MOST_COMPARED], 1)
    meant = f"Did you mean {near[0][:_SHOWN_CHARACTERS]!r}? " if near else ""
    return CheckFailed(
        "COLUMN_NOT_FOUND",
        f"{side} has no column {column[:_SHOWN_CHARACTERS]!r}, but {listed(names)}.",
        f"{meant}Correct the columns or the thresholds of the monitor.",
    )


def listed(names: Sequence[str]) -> str:
    """How many, and the first of them."""
    shown = ", ".join(name[:_SHOWN_CHARACTERS] for name in names[:_SHOWN_COLUMNS])
    more = ", …" if len(names) > _SHOWN_COLUMNS else ""
    return f"{len(names):,} columns ({shown}{more})"
