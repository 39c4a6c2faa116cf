# Generated from ../_async/workspace.py by scripts/generate_sync.py; do not edit.
"""One workspace: the door to everything in it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from stellwerk._sync.activities import Activities
from stellwerk._sync.assets import Datasets, Environments, Models
from stellwerk._sync.batches import Batches
from stellwerk._sync.collected import CollectedData
from stellwerk._sync.core import Core
from stellwerk._sync.datastores import Datastores, Quota
from stellwerk._sync.deployments import Deployments
from stellwerk._sync.endpoint_keys import EndpointKeys
from stellwerk._sync.endpoints import Endpoints
from stellwerk._sync.events import Events
from stellwerk._sync.experiments import Experiments
from stellwerk._sync.loads import Loads
from stellwerk._sync.members import Members
from stellwerk._sync.monitors import Monitors
from stellwerk._sync.run import Run
from stellwerk._sync.runs import Runs
from stellwerk._sync.secrets import Secrets
from stellwerk.points import Series
from stellwerk.recorder import Recorder
from stellwerk_protos.compute.v1 import computes_pb2, computes_pb2_grpc
from stellwerk_protos.telemetry.v1 import telemetry_pb2, telemetry_pb2_grpc

if TYPE_CHECKING:
    from stellwerk.interactive import InteractiveRun


class Workspace:
    """What a workspace holds. `name` is its full name."""

    def __init__(self, core: Core, name: str) -> None:
        self._core = core
        self.name = name
        self.datasets = Datasets(core, name)
        self.environments = Environments(core, name)
        self.models = Models(core, name)
        self.runs = Runs(core, name, self.environments)
        self.endpoints = Endpoints(core, name)
        self.loads = Loads(core, name)
        self.endpoint_keys = EndpointKeys(core, name)
        self.deployments = Deployments(core, name)
        self.batches = Batches(core, name)
        self.collected_data = CollectedData(core, name)
        self.monitors = Monitors(core, name)
        self.computes = Computes(core, name)
        self.events = Events(core, name)
        self.experiments = Experiments(core, name)
        self.datastores = Datastores(core, name)
        self.quota = Quota(core, name)
        self.activities = Activities(core, name)
        self.secrets = Secrets(core, name)
        self.members = Members(core, name)

    def start_run(
        self,
        *,
        experiment: str = "",
        name: str = "",
        display_name: str = "",
        description: str = "",
        parent: "Run | Recorder | str | None" = None,
        tags: Mapping[str, str] | None = None,
        flush_seconds: float = 60.0,
    ) -> "InteractiveRun":
        """A run of this very process, for a `with` block; needs no compute.

        The block's end ships everything, for `flush_seconds` at most, and ends the run: Completed, or
        Failed with the exception. `experiment` is that of the parent, else "interactive".
        """
        from stellwerk import interactive

        request = interactive.start_request(
            self.name,
            experiment=experiment,
            name=name,
            display_name=display_name,
            description=description,
            parent=parent,
            tags=tags,
        )
        return interactive.InteractiveRun(self._core.settings, request, flush_seconds=flush_seconds)

    def metrics(
        self,
        runs: "Iterable[Run | str]",
        metrics: Sequence[str] = (),
        *,
        method: str = "lttb",
        max_points: int = 0,
    ) -> Sequence[Series]:
        """See `Runs.histories`."""
        return self.runs.histories(runs, metrics, method=method, max_points=max_points)

    def why(self, name: str) -> telemetry_pb2.Explanation:
        """Why a resource is in its state: `runs/abc`, `endpoints/x`, or a run by its id alone."""
        resource = name if "/" in name else f"runs/{name}"
        if not resource.startswith("workspaces/"):
            resource = f"{self.name}/{resource}"
        stub = telemetry_pb2_grpc.TelemetryServiceStub(self._core.channel)
        return self._core.call(stub.Explain, telemetry_pb2.ExplainRequest(name=resource))


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
