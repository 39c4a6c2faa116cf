"""Puts the parts of retention together."""

from stellwerk_platform.app import App
from stellwerk_platform.bus import Bus
from stellwerk_platform.mongo import Database
from stellwerk_runs.retention.holds import Holds
from stellwerk_runs.retention.references import References
from stellwerk_runs.retention.remover import Remover
from stellwerk_runs.retention.service import RetentionService
from stellwerk_runs.retention.store import RemovalStore, RuleStore
from stellwerk_runs.runs.store import RunStore
from stellwerk_runs.snapshots.store import SnapshotStore
from stellwerk_runs.upstream import Registry


async def compose(
    app: App,
    database: Database,
    bus: Bus,
    runs: RunStore,
    snapshots: SnapshotStore,
    registry: Registry,
    grace_seconds: float,
) -> RetentionService:
    """Opens the stores and starts what runs in the background."""
    rules, removals, holds = RuleStore(database), RemovalStore(database, runs), Holds(database, bus)
    for store in (rules, removals, holds):
        await store.open()
    references = References(database, snapshots, registry)
    remover = Remover(database, removals, references, snapshots, holds, registry, grace_seconds)
    app.background(holds.run())
    app.background(remover.run())
    return RetentionService(rules, removals, references, remover, runs, holds, registry)
