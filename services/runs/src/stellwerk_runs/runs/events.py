"""Consumes the events of allocations and moves the runs that they serve."""

import logging

from stellwerk_platform import failpoints, names
from stellwerk_platform.bus import Bus
from stellwerk_platform.errors import InvalidArgument, NotFound
from stellwerk_platform.journal import Event
from stellwerk_protos.compute.v1.computes_pb2 import Allocation
from stellwerk_runs.runs import states
from stellwerk_runs.runs.leases import LeaseStore
from stellwerk_runs.runs.store import RunStore

log = logging.getLogger(__name__)
DURABLE = "runs-allocations"
TYPES = ["compute.allocation.*"]


class Allocations:
    """The consumer."""

    def __init__(self, bus: Bus, store: RunStore, leases: LeaseStore) -> None:
        self._bus = bus
        self._store = store
        self._leases = leases

    async def run(self) -> None:
        """Consumes for ever."""
        await self._bus.consume(DURABLE, TYPES, self.handle)

    async def handle(self, event: Event) -> None:
        """Moves the owner of an allocation, if it is a run; its end is that of what its script left.

        Done again after a crash in between, because the event is not acknowledged before both are.
        """
        allocation = Allocation()
        event.load(allocation)
        if not _is_run(allocation.owner):
            return
        try:
            run = await self._store.runs.update(
                allocation.owner, lambda run: states.follow(run, allocation, cause=event.id)
            )
        except NotFound:
            # Runs are created before their allocations: this one belongs to a database that is gone.
            log.warning("%s serves %s, which is not here", allocation.name, allocation.owner)
            return
        failpoints.hit("run.moved")
        if states.is_terminal(run.state):
            await self._leases.end_within(run, event.id)


def _is_run(owner: str) -> bool:
    try:
        names.parse("workspaces/*/runs/*", owner)
    except InvalidArgument:
        return False
    return True
