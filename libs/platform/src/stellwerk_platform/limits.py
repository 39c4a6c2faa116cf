"""How much one caller may have going on in one process at a time."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from stellwerk_platform.auth import Caller
from stellwerk_platform.errors import ResourceExhausted
from stellwerk_platform.roles import SERVICE

# Generous: a script with some hundred threads, or the watchers of a large sweep, fit.
CALLS = 1_000
STREAMS = 1_000


class Limits:
    """Counts the running calls by caller. Services, which call for everybody, are not counted."""

    def __init__(self, calls: int = CALLS, streams: int = STREAMS) -> None:
        self._limits = {False: calls, True: streams}
        self._running: Counter[tuple[str, bool]] = Counter()

    @contextmanager
    def one_more(self, caller: Caller | None, streaming: bool) -> Iterator[None]:
        """Around a call; raises `ResourceExhausted` when the caller has too many already."""
        if caller is None or caller.role == SERVICE:
            yield
            return
        key = caller.subject, streaming
        if self._running[key] >= self._limits[streaming]:
            raise ResourceExhausted(
                "TOO_MANY_STREAMS" if streaming else "TOO_MANY_CALLS",
                f"{caller.subject} has {self._limits[streaming]:,} {'streams' if streaming else 'calls'} "
                "going on here.",
                "Wait until some have ended.",
            )
        self._running[key] += 1
        try:
            yield
        finally:
            self._running[key] -= 1
            if not self._running[key]:
                del self._running[key]
