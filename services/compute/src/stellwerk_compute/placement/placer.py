"""Places what is queued whenever something has changed."""

import asyncio
import logging
from collections.abc import Callable

from stellwerk_compute.allocations import domain as allocation_rules
from stellwerk_compute.allocations.store import AllocationStore, Beside
from stellwerk_compute.nodes.store import NodeStore
from stellwerk_compute.placement import domain
from stellwerk_platform.journal import Fact
from stellwerk_protos.compute.v1 import computes_pb2

log = logging.getLogger(__name__)
_RETRY_SECONDS = 1.0
# Woken by events. The rest is for what another replica of compute changed.
_SWEEP_SECONDS = 15.0


class Placer:
    """Calls `dispatch(node, allocation)` for each allocation that it has assigned."""

    def __init__(
        self, allocations: AllocationStore, nodes: NodeStore, dispatch: Callable[[str, str], None]
    ) -> None:
        self._allocations = allocations
        self._nodes = nodes
        self._dispatch = dispatch
        self._awake = asyncio.Event()
        self._awake.set()

    def wake(self) -> None:
        """Says that something was queued, or that a place became free."""
        self._awake.set()

    async def run(self) -> None:
        """For ever; trouble with the store is waited out."""
        while True:
            try:
                async with asyncio.timeout(_SWEEP_SECONDS):
                    await self._awake.wait()
            except TimeoutError:
                pass
            self._awake.clear()
            try:
                await self.place()
            except Exception as error:
                log.warning("Nothing can be placed now: %s", error)
                await asyncio.sleep(_RETRY_SECONDS)
                self._awake.set()

    async def place(self) -> None:
        """One pass over the queue."""
        waiting = await self._allocations.queued()
        if not waiting:
            return
        used = await self._allocations.used_slots()
        nodes = [
            domain.Node(node.name, node.pool, node.slots, used[node.name])
            for node in await self._nodes.ready()
        ]
        for decision in domain.plan(waiting, nodes):
            await self._apply(decision)

    async def _apply(self, decision: domain.Decision) -> None:
        def change(allocation: computes_pb2.Allocation, beside: Beside) -> tuple[Fact | None, Beside]:
            if decision.reason is not None:
                return allocation_rules.wait(allocation, decision.reason), beside
            return allocation_rules.assign(allocation, decision.node), beside

        allocation = await self._allocations.change(decision.name, change)
        if decision.node and allocation.node == decision.node:
            self._dispatch(decision.node, decision.name)
