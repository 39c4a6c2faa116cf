# Generated from ../_async/workspace.py by scripts/generate_sync.py; do not edit.
"""One workspace: the door to everything in it."""

from collections.abc import Sequence

from stellwerk._sync.assets import Datasets, Environments, Models
from stellwerk._sync.core import Core
from stellwerk._sync.events import Events
from stellwerk._sync.inference import Deployments, Endpoints
from stellwerk._sync.runs import Runs
from stellwerk_protos.compute.v1 import computes_pb2, computes_pb2_grpc


class Workspace:
    """What a workspace holds. `name` is its full name."""

    def __init__(self, core: Core, name: str) -> None:
        self.name = name
        self.datasets = Datasets(core, name)
        self.environments = Environments(core, name)
        self.models = Models(core, name)
        self.runs = Runs(core, name, self.environments)
        self.endpoints = Endpoints(core, name)
        self.deployments = Deployments(core, name)
        self.computes = Computes(core, name)
        self.events = Events(core, name)


class Computes:
    """The computes of a workspace."""

    def __init__(self, core: Core, parent: str) -> None:
        self._core, self._parent = core, parent
        self._stub = computes_pb2_grpc.ComputeServiceStub(core.channel)

    def list(self, *, limit: int | None = None) -> Sequence[computes_pb2.Compute]:
        """The computes, by name."""
        request = computes_pb2.ListComputesRequest(parent=self._parent)
        pages = self._core.pages(self._stub.ListComputes, request, limit)
        return [compute for page in pages for compute in page.computes]
