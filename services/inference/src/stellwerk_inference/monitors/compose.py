"""What runs for monitors in a process of the service."""

from stellwerk_inference.changes import Changes
from stellwerk_inference.collected.store import CollectedStore
from stellwerk_inference.monitors.checker import Checker
from stellwerk_inference.monitors.scheduler import Scheduler
from stellwerk_inference.monitors.service import MonitorService
from stellwerk_inference.monitors.store import MonitorStore
from stellwerk_inference.store import Store
from stellwerk_inference.upstream import Upstream
from stellwerk_platform.app import App
from stellwerk_platform.grpc_server import Registration
from stellwerk_protos.inference.v1 import monitors_pb2, monitors_pb2_grpc


def monitoring(
    app: App,
    monitors: MonitorStore,
    store: Store,
    collected: CollectedStore,
    changes: Changes,
    upstream: Upstream,
    places: int,
) -> Registration:
    """Starts the schedule, and so many checks at a time; returns the service."""
    app.background(Scheduler(monitors, changes).run())
    app.background(Checker(monitors, store, collected, changes, upstream, places).run())
    return Registration(
        MonitorService(monitors, store, changes, upstream),
        monitors_pb2_grpc.add_MonitorServiceServicer_to_server,
        monitors_pb2.DESCRIPTOR.services_by_name["MonitorService"],
    )
