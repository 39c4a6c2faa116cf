"""Places what is queued whenever something has changed."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable

from stellwerk_compute.allocations import domain as allocation_rules
from stellwerk_compute.allocations.store import AllocationStore, Beside
from stellwerk_compute.nodes.store import NodeStore
from stellwerk_compute.placement import domain
from stellwerk_platform.errors import FailedPrecondition, NotFound, PlatformError
from stellwerk_platform.journal import Fact
from stellwerk_platform.quotas import Quotas
from stellwerk_protos.compute.v1 import computes_pb2

log = logging.getLogger(__name__)
_RETRY_SECONDS = 1.0
# Woken by events. The rest is for what another replica of compute changed.
_SWEEP_SECONDS = 15.0


class Placer:
    """Calls `dispatch(node, allocation)` for each allocation that it has assigned."""

    def __init__(
        self,
        allocations: AllocationStore,
        nodes: NodeStore,
        dispatch: Callable[[str, str], None],
        quotas: Quotas,
    ) -> None:
        self._quotas = quotas
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
        limits, problem = await self._limits({item.workspace for item in waiting})
        placed = await self._allocations.placed()
        used = Counter(item.node for item in placed if item.takes_slot)
        nodes = [
            domain.Node(node.name, node.pool, node.slots, used[node.name])
            for node in await self._nodes.ready()
        ]
        known = [item for item in waiting if item.workspace in limits]
        for decision in domain.plan(known, nodes, placed, limits):
            await self._apply(decision)
        if problem is not None:
            raise problem

    async def _limits(self, workspaces: set[str]) -> tuple[dict[str, domain.Limits], PlatformError | None]:
        """The limits by workspace, and why some are not known: what waits there goes on waiting."""
        found: dict[str, domain.Limits] = {}
        problem = None
        for workspace in workspaces:
            try:
                limits = await self._quotas.limits(workspace)
            except (NotFound, FailedPrecondition):
                continue  # it is being deleted, and so is what waits in it
            except PlatformError as error:
                problem = error
            else:
                found[workspace] = domain.Limits(nodes=limits.nodes, cores=limits.cores)
        return found, problem

    async def _apply(self, decision: domain.Decision) -> None:
        def change(allocation: computes_pb2.Allocation, beside: Beside) -> tuple[Fact | None, Beside]:
            if decision.reason is not None:
                return allocation_rules.wait(allocation, decision.reason), beside
            return allocation_rules.assign(allocation, decision.node), beside

        allocation = await self._allocations.change(decision.name, change)
        if decision.node and allocation.node == decision.node:
            self._dispatch(decision.node, decision.name)
