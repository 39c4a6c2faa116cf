"""The judge of leases: sleeps until the first one ends."""

import asyncio
import logging
from datetime import UTC, datetime

from stellwerk_compute.allocations.store import AllocationStore
from stellwerk_compute.nodes.store import NodeStore
from stellwerk_platform.mongo import Database, Transaction

log = logging.getLogger(__name__)
_SHORTEST_SLEEP_SECONDS = 0.02


class LeaseJudge:
    """Marks nodes that were silent for one lease, and what lives on them."""

    def __init__(self, database: Database, nodes: NodeStore, allocations: AllocationStore) -> None:
        self._database = database
        self._nodes = nodes
        self._allocations = allocations

    async def run(self) -> None:
        """For ever; trouble with the store is waited out."""
        while True:
            try:
                for node in await self._nodes.expired():
                    await self._expire(node)
                expiry = await self._nodes.next_expiry()
            except Exception as error:
                log.warning("Leases cannot be judged now: %s", error)
                expiry = None
            await asyncio.sleep(self._until(expiry))

    def _until(self, expiry: datetime | None) -> float:
        # A node that announces itself later cannot expire before one lease from now.
        longest = self._nodes.lease_seconds
        if expiry is None:
            return min(longest, 1.0)
        return min(max((expiry - datetime.now(UTC)).total_seconds(), _SHORTEST_SLEEP_SECONDS), longest)

    async def _expire(self, node: str) -> None:
        async def work(tx: Transaction) -> bool:
            if not await self._nodes.expire_in(tx, node):
                return False
            await self._allocations.silence_in(tx, node)
            return True

        if await self._database.commit(work):
            log.warning("%s has not been heard of for %g s", node, self._nodes.lease_seconds)
