"""The judge of leases: sleeps until the first one ends."""

import asyncio
import logging
import math
import time
from datetime import UTC, datetime, timedelta

from stellwerk_compute.allocations import domain
from stellwerk_compute.allocations.store import AllocationStore
from stellwerk_compute.nodes.store import NodeStore
from stellwerk_platform.mongo import Database, Transaction

log = logging.getLogger(__name__)
_SHORTEST_SLEEP_SECONDS = 0.02
_STALL_SHARE = 0.5
# So long a cancellation waits for a silent node.
_CANCEL_LEASES = 2


class LeaseJudge:
    """Marks nodes that were silent for one lease, and what lives on them."""

    def __init__(self, database: Database, nodes: NodeStore, allocations: AllocationStore) -> None:
        self._database = database
        self._nodes = nodes
        self._allocations = allocations
        self._watched_since = time.monotonic()

    async def run(self) -> None:
        """For ever; trouble with the store is waited out.

        Begins with one full lease for every node: until now nobody could renew one.
        """
        sleep_seconds, done_time = 0.0, -math.inf
        while True:
            try:
                expired = await self._nodes.expired()
                if time.monotonic() - done_time > sleep_seconds + self._nodes.lease_seconds * _STALL_SHARE:
                    # This process or the store stood still, and nobody could renew a lease.
                    await self._nodes.grant()
                    self._watched_since = time.monotonic()
                    expired = []
                for node in expired:
                    await self._expire(node)
                await self._abandon()
                expiry = await self._nodes.next_expiry()
                done_time = time.monotonic()
            except Exception as error:
                log.warning("Leases cannot be judged now: %s", error)
                expiry = None
            sleep_seconds = self._until(expiry)
            await asyncio.sleep(sleep_seconds)

    def _until(self, expiry: datetime | None) -> float:
        # A node that announces itself later cannot expire before one lease from now.
        longest = self._nodes.lease_seconds
        if expiry is None:
            return min(longest, 1.0)
        return min(max((expiry - datetime.now(UTC)).total_seconds(), _SHORTEST_SLEEP_SECONDS), longest)

    async def _abandon(self) -> None:
        """Ends what was canceled on nodes that do not return: nobody else would."""
        patience_seconds = self._nodes.lease_seconds * _CANCEL_LEASES
        if time.monotonic() - self._watched_since < patience_seconds:
            return
        since = datetime.now(UTC) - timedelta(seconds=patience_seconds)
        for name in await self._allocations.abandoned(since):
            await self._allocations.change(name, lambda found, beside: (domain.abandon(found), beside))

    async def _expire(self, node: str) -> None:
        async def work(tx: Transaction) -> bool:
            if not await self._nodes.expire_in(tx, node):
                return False
            await self._allocations.silence_in(tx, node, cause=tx.last_event())
            return True

        if await self._database.commit(work):
            log.warning("%s has not been heard of for %g s", node, self._nodes.lease_seconds)
