"""Whose check is next in a process that makes several at once, so that no workspace waits for another's."""

from collections import Counter
from collections.abc import Mapping
from datetime import datetime

from stellwerk_platform import names

_MOST_REMEMBERED = 10_000


class Turns:
    """Workspaces take turns, and where there is more than one place, none of them has all."""

    def __init__(self, places: int) -> None:
        self._most = max(1, places - 1)
        self._busy: Counter[str] = Counter()
        # The number of the last turn of each one, the oldest first. One that has nothing to do for a while
        # keeps it: with none, it would come back before those that have been waiting since their turn.
        self._last: dict[str, int] = {}
        self._count = 0

    def order(self, waiting: Mapping[str, datetime]) -> list[str]:
        """The workspaces that may have a place, the first one first.

        `waiting` has for each monitor the time at which its oldest check that waits was begun.
        """
        oldest: dict[str, datetime] = {}
        for monitor, begun in waiting.items():
            workspace = names.parent_of(monitor)
            oldest[workspace] = min(begun, oldest.get(workspace, begun))
        free = [workspace for workspace in oldest if self._busy[workspace] < self._most]
        return sorted(free, key=lambda workspace: (self._last.get(workspace, 0), oldest[workspace]))

    def begin(self, workspace: str) -> None:
        """A check of this workspace has a place."""
        self._count += 1
        self._last.pop(workspace, None)
        self._last[workspace] = self._count
        if len(self._last) > _MOST_REMEMBERED:
            del self._last[next(iter(self._last))]
        self._busy[workspace] += 1

    def end(self, workspace: str) -> None:
        """It gives it back."""
        self._busy[workspace] -= 1
        if not self._busy[workspace]:
            del self._busy[workspace]
