"""One workspace: the door to everything in it."""

from collections.abc import Sequence

from stellwerk._async.assets import AsyncDatasets, AsyncEnvironments, AsyncModels
from stellwerk._async.core import AsyncCore
from stellwerk._async.events import AsyncEvents
from stellwerk._async.inference import AsyncDeployments, AsyncEndpoints
from stellwerk._async.runs import AsyncRuns
from stellwerk_protos.compute.v1 import computes_pb2, computes_pb2_grpc


class AsyncWorkspace:
    """What a workspace holds. `name` is its full name."""

    def __init__(self, core: AsyncCore, name: str) -> None:
        self.name = name
        self.datasets = AsyncDatasets(core, name)
        self.environments = AsyncEnvironments(core, name)
        self.models = AsyncModels(core, name)
        self.runs = AsyncRuns(core, name, self.environments)
        self.endpoints = AsyncEndpoints(core, name)
        self.deployments = AsyncDeployments(core, name)
        self.computes = AsyncComputes(core, name)
        self.events = AsyncEvents(core, name)


class AsyncComputes:
    """The computes of a workspace."""

    def __init__(self, core: AsyncCore, parent: str) -> None:
        self._core, self._parent = core, parent
        self._stub = computes_pb2_grpc.ComputeServiceStub(core.channel)

    async def list(self, *, limit: int | None = None) -> Sequence[computes_pb2.Compute]:
        """The computes, by name."""
        request = computes_pb2.ListComputesRequest(parent=self._parent)
        pages = await self._core.pages(self._stub.ListComputes, request, limit)
        return [compute for page in pages for compute in page.computes]
