"""Reading computes, nodes and allocations."""

from typing import Any

from stellwerk_compute.allocations import domain as allocation_rules
from stellwerk_compute.allocations.store import AllocationStore
from stellwerk_compute.computes.store import ComputeStore
from stellwerk_compute.nodes.store import NodeStore
from stellwerk_compute.usage.store import UsageStore
from stellwerk_platform import names
from stellwerk_protos.compute.v1 import computes_pb2, computes_pb2_grpc


class ComputeService(computes_pb2_grpc.ComputeServiceServicer):
    """Answers from the stores."""

    def __init__(
        self, computes: ComputeStore, nodes: NodeStore, allocations: AllocationStore, usage: UsageStore
    ) -> None:
        self._usage = usage
        self._computes = computes
        self._nodes = nodes
        self._allocations = allocations

    async def GetUsage(self, request: computes_pb2.GetUsageRequest, context: Any) -> computes_pb2.Usage:
        """Nodes and cores now, and CPU since the workspace was made."""
        (workspace,) = names.parse("workspaces/*", request.name)
        placed = await self._allocations.placed_of(workspace)
        return computes_pb2.Usage(
            nodes=len({item.node for item in placed}),
            cores=sum(item.cores for item in placed),
            cpu_seconds=await self._usage.cpu_seconds(request.name),
        )

    async def GetCompute(self, request: computes_pb2.GetComputeRequest, context: Any) -> computes_pb2.Compute:
        """One compute."""
        return await self._computes.get(request.name)

    async def ListComputes(
        self, request: computes_pb2.ListComputesRequest, context: Any
    ) -> computes_pb2.ListComputesResponse:
        """Computes of a workspace, by name."""
        (workspace,) = names.parse("workspaces/*", request.parent)
        items, token = await self._computes.page(workspace, request.page_size, request.page_token)
        return computes_pb2.ListComputesResponse(computes=items, next_page_token=token)

    async def ListNodes(
        self, request: computes_pb2.ListNodesRequest, context: Any
    ) -> computes_pb2.ListNodesResponse:
        """All nodes, by name."""
        items, token = await self._nodes.page(request.page_size, request.page_token)
        return computes_pb2.ListNodesResponse(nodes=items, next_page_token=token)

    async def GetAllocation(
        self, request: computes_pb2.GetAllocationRequest, context: Any
    ) -> computes_pb2.Allocation:
        """One allocation."""
        names.parse(allocation_rules.PATTERN, request.name)
        return await self._allocations.get(request.name)

    async def ListAllocations(
        self, request: computes_pb2.ListAllocationsRequest, context: Any
    ) -> computes_pb2.ListAllocationsResponse:
        """Allocations of a workspace, newest first."""
        (workspace,) = names.parse("workspaces/*", request.parent)
        items, token = await self._allocations.page(workspace, request.page_size, request.page_token)
        return computes_pb2.ListAllocationsResponse(allocations=items, next_page_token=token)
