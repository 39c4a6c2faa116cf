"""Begins the checks that schedules want.

What is due is read from the store, and the check begins in the transaction that moves the schedule
on: each due time has one check however many processes look, and what was due while none looked has
one together.
"""

import logging
from datetime import UTC, datetime

from stellwerk_inference.changes import Changes
from stellwerk_inference.monitors.store import MonitorStore
from stellwerk_platform.errors import PlatformError

log = logging.getLogger(__name__)
_IDLE_SECONDS = 5.0


class Scheduler:
    """Holds nothing, so several processes do no harm."""

    def __init__(self, monitors: MonitorStore, changes: Changes) -> None:
        self._monitors = monitors
        self._changes = changes

    async def run(self) -> None:
        """Looks for ever: when the next schedule is due, and after every change."""
        pause = 0.0
        with self._changes.watch() as waiter:
            while True:
                await waiter.next(pause)
                try:
                    pause = await self._begin_due()
                except Exception:
                    log.warning("What is due cannot be read; tried again", exc_info=True)
                    pause = _IDLE_SECONDS

    async def _begin_due(self) -> float:
        """One round; returns the seconds until the next one."""
        for name in await self._monitors.due(datetime.now(UTC)):
            try:
                await self._monitors.begin_due(name)
            except PlatformError as error:
                # Deleted at this moment, or with its workspace; what is away now is tried again.
                log.info("No check of %s: %s", name, error)
        now = datetime.now(UTC)
        due = await self._monitors.next_due(now)
        return _IDLE_SECONDS if due is None else min(_IDLE_SECONDS, (due - now).total_seconds())
