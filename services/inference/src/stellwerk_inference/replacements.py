"""Replaces replicas that have died, with growing pauses and a bound."""

import logging
from datetime import UTC, datetime

from stellwerk_inference.changes import Changes
from stellwerk_inference.lifecycle import Lifecycle
from stellwerk_inference.store import Store

log = logging.getLogger(__name__)
_IDLE_SECONDS = 5.0


class Replacer:
    """Looks after every change; what it does is in the store, so several processes do no harm."""

    def __init__(self, store: Store, lifecycle: Lifecycle, changes: Changes) -> None:
        self._store = store
        self._lifecycle = lifecycle
        self._changes = changes

    async def run(self) -> None:
        """Replaces for ever."""
        pause = 0.0
        with self._changes.watch() as waiter:
            while True:
                await waiter.next(pause)
                try:
                    pause = await self._replace()
                except Exception:
                    log.warning("Replicas could not be replaced; tried again", exc_info=True)
                    pause = _IDLE_SECONDS

    async def _replace(self) -> float:
        """One round; returns the seconds until the next one is due."""
        pause = _IDLE_SECONDS
        for deployment in await self._store.incomplete_deployments():
            due = await self._lifecycle.replace_replicas(deployment.name)
            if due is not None:
                pause = min(pause, (due - datetime.now(UTC)).total_seconds())
        return max(pause, 0.01)
