"""What other services hold on to: runs that models came from, and snapshots that deployments run.

Told by the journal, so that nobody has to be asked before something is removed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pymongo import ASCENDING, IndexModel

from stellwerk_platform.bus import Bus
from stellwerk_platform.journal import Event
from stellwerk_platform.mongo import Database

DURABLE = "runs-holds"
TYPES = ["registry.model_version.created", "inference.deployment.*"]


class Holds:
    """The collection `holds` (`_id` the holder, `target` a run or snapshot), and its consumer."""

    def __init__(self, database: Database, bus: Bus) -> None:
        self._database = database
        self._bus = bus
        self._holds = database.raw["holds"]

    async def open(self) -> None:
        """Creates the collection."""
        await self._database.ensure("holds", [IndexModel([("target", ASCENDING)])], ["target"])

    async def run(self) -> None:
        """Consumes for ever."""
        await self._bus.consume(DURABLE, TYPES, self.handle)

    async def handle(self, event: Event) -> None:
        """Notes who holds what, and who does no longer."""
        targets = targets_of(event.data)
        if event.verb == "deleted":
            await self._holds.delete_one({"_id": event.resource})
        elif targets:
            # MongoDB finds a value in a list as it finds one alone.
            await self._holds.update_one({"_id": event.resource}, {"$set": {"target": targets}}, upsert=True)

    async def of(self, targets: Sequence[str]) -> dict[str, str]:
        """One holder by target, of those that are held."""
        wanted = set(targets)
        found = self._holds.find({"target": {"$in": list(targets)}})
        return {
            target: hold["_id"]
            async for hold in found
            for target in _listed(hold["target"])
            if target in wanted
        }


def targets_of(resource: Mapping[str, Any]) -> list[str]:
    """What a model version or deployment holds: a run, the snapshots of all rollouts that are kept."""
    workloads = [resource, resource.get("workload", {})]
    workloads += [rollout.get("workload", {}) for rollout in resource.get("rollouts", ())]
    named = {workload.get("snapshot", "") for workload in workloads} | {resource.get("run", "")}
    return sorted(named - {""})


def _listed(target: str | list[str]) -> list[str]:
    return [target] if isinstance(target, str) else target
