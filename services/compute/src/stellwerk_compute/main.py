"""Composition of compute."""

from stellwerk_compute.agents.service import AgentService
from stellwerk_compute.agents.session import Sessions
from stellwerk_compute.allocations.events import CREATED, STOPPED, WorkloadEvents, WorkspaceEvents
from stellwerk_compute.allocations.store import AllocationStore
from stellwerk_compute.computes.store import ComputeStore
from stellwerk_compute.config import Settings
from stellwerk_compute.nodes.leases import LeaseJudge
from stellwerk_compute.nodes.store import NodeStore
from stellwerk_compute.placement.placer import Placer
from stellwerk_compute.service import ComputeService
from stellwerk_compute.usage.store import UsageStore
from stellwerk_compute.workspace_data import workspace_data
from stellwerk_platform import app
from stellwerk_platform.grpc_server import Registration
from stellwerk_platform.quotas import Quotas
from stellwerk_protos.compute.v1 import agents_pb2, agents_pb2_grpc, computes_pb2, computes_pb2_grpc
from stellwerk_protos.registry.v1 import workspaces_pb2_grpc
from stellwerk_protos.secrets.v1 import tokens_pb2_grpc


async def compose(process: app.App, settings: Settings) -> None:
    """Connects the parts and serves."""
    service = await app.Service.open(process, settings)
    registry = service.channel(settings.registry_address)
    secrets = service.channel(settings.secrets_address)
    computes = ComputeStore(service.database, workspaces_pb2_grpc.WorkspaceServiceStub(registry))
    nodes = NodeStore(service.database, settings.lease_seconds)
    usage = UsageStore(service.database)
    allocations = AllocationStore(service.database, usage)
    for store in (computes, nodes, allocations, usage):
        await store.open()

    sessions = Sessions()
    quotas = Quotas(registry, lambda: placer.wake())
    placer = Placer(allocations, nodes, sessions.assign, quotas)
    await computes.workspaces.follow(service.bus)
    computes.workspaces.on_change(quotas.forget)
    await quotas.follow(service.bus)
    workloads = WorkloadEvents(allocations, computes, sessions, placer.wake)
    agents = AgentService(
        nodes, allocations, sessions, tokens_pb2_grpc.TokenServiceStub(secrets), placer.wake
    )
    process.background(placer.run())
    process.background(service.bus.consume("compute-workloads", [*CREATED, *STOPPED], workloads.handle))
    process.background(
        service.bus.consume(
            "compute-workspaces", ["registry.workspace.created"], WorkspaceEvents(computes).handle
        )
    )
    await process.serve(
        settings.listen,
        service.guard,
        [
            Registration(
                ComputeService(computes, nodes, allocations, usage),
                computes_pb2_grpc.add_ComputeServiceServicer_to_server,
                computes_pb2.DESCRIPTOR.services_by_name["ComputeService"],
            ),
            workspace_data(service.database, computes.workspaces, allocations).registration(),
            Registration(
                agents,
                agents_pb2_grpc.add_AgentServiceServicer_to_server,
                agents_pb2.DESCRIPTOR.services_by_name["AgentService"],
            ),
        ],
    )
    process.background(LeaseJudge(service.database, nodes, allocations).run())
    process.defer(sessions.close)


if __name__ == "__main__":
    app.run("compute", Settings, compose)
