"""How many write-ahead files may feed one run, and how many logs it may have.

The summary of a metric names each source, and one answer names all logs.
"""

from collections import OrderedDict
from collections.abc import Callable

from stellwerk_platform.errors import ResourceExhausted

_RUNS = 200


class Names:
    """Counts the names of the runs seen last. A guard against a script gone wild, not an exact limit."""

    def __init__(self, limit: int, too_many: Callable[[int, str], ResourceExhausted]) -> None:
        self._limit = limit
        self._too_many = too_many
        self._by_run: OrderedDict[str, set[str]] = OrderedDict()

    def check(self, run: str, name: str) -> None:
        """Raises `ResourceExhausted` for one name too many."""
        names = self._by_run.setdefault(run, set())
        self._by_run.move_to_end(run)
        if len(self._by_run) > _RUNS:
            self._by_run.popitem(last=False)
        if name not in names and len(names) >= self._limit:
            raise self._too_many(self._limit, run)
        names.add(name)


def sources(limit: int = 10_000) -> Names:
    """Of write-ahead files."""
    return Names(
        limit,
        lambda limit, run: ResourceExhausted(
            "TOO_MANY_SOURCES",
            f"More than {limit:,} processes log metrics to {run}.",
            "Let fewer processes log, or submit more runs.",
        ),
    )


def logs(limit: int = 1_000) -> Names:
    """Of logs."""
    return Names(
        limit,
        lambda limit, run: ResourceExhausted(
            "TOO_MANY_LOGS", f"{run} has more than {limit:,} logs.", "Write fewer, or files below ./outputs."
        ),
    )
