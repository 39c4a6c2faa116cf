"""How many write-ahead files may feed one run: the summary of a metric names each of them."""

from collections import OrderedDict

from stellwerk_platform.errors import ResourceExhausted

_SOURCES_PER_RUN = 10_000
_RUNS = 200


class Sources:
    """Counts the sources of the runs seen last. A guard against a script gone wild, not an exact limit."""

    def __init__(self, limit: int = _SOURCES_PER_RUN) -> None:
        self._limit = limit
        self._by_run: OrderedDict[str, set[str]] = OrderedDict()

    def check(self, run: str, source: str) -> None:
        """Raises `ResourceExhausted` for one source too many."""
        sources = self._by_run.setdefault(run, set())
        self._by_run.move_to_end(run)
        if len(self._by_run) > _RUNS:
            self._by_run.popitem(last=False)
        if source not in sources and len(sources) >= self._limit:
            raise ResourceExhausted(
                "TOO_MANY_SOURCES",
                f"More than {self._limit:,} processes log metrics to {run}.",
                "Let fewer processes log, or submit more runs.",
            )
        sources.add(source)
