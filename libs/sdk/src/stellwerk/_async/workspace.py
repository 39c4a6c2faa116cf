"""One workspace: the door to everything in it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from stellwerk._async.activities import AsyncActivities
from stellwerk._async.assets import AsyncDatasets, AsyncEnvironments, AsyncModels
from stellwerk._async.batches import AsyncBatches
from stellwerk._async.collected import AsyncCollectedData
from stellwerk._async.core import AsyncCore
from stellwerk._async.datastores import AsyncDatastores, AsyncQuota
from stellwerk._async.deployments import AsyncDeployments
from stellwerk._async.endpoint_keys import AsyncEndpointKeys
from stellwerk._async.endpoints import AsyncEndpoints
from stellwerk._async.events import AsyncEvents
from stellwerk._async.experiments import AsyncExperiments
from stellwerk._async.loads import AsyncLoads
from stellwerk._async.members import AsyncMembers
from stellwerk._async.monitors import AsyncMonitors
from stellwerk._async.run import AsyncRun
from stellwerk._async.runs import AsyncRuns
from stellwerk._async.secrets import AsyncSecrets
from stellwerk.points import Series
from stellwerk.recorder import Recorder
from stellwerk_protos.compute.v1 import computes_pb2, computes_pb2_grpc
from stellwerk_protos.telemetry.v1 import telemetry_pb2, telemetry_pb2_grpc

if TYPE_CHECKING:
    from stellwerk.interactive import InteractiveRun


class AsyncWorkspace:
    """What a workspace holds. `name` is its full name."""

    def __init__(self, core: AsyncCore, name: str) -> None:
        self._core = core
        self.name = name
        self.datasets = AsyncDatasets(core, name)
        self.environments = AsyncEnvironments(core, name)
        self.models = AsyncModels(core, name)
        self.runs = AsyncRuns(core, name, self.environments)
        self.endpoints = AsyncEndpoints(core, name)
        self.loads = AsyncLoads(core, name)
        self.endpoint_keys = AsyncEndpointKeys(core, name)
        self.deployments = AsyncDeployments(core, name)
        self.batches = AsyncBatches(core, name)
        self.collected_data = AsyncCollectedData(core, name)
        self.monitors = AsyncMonitors(core, name)
        self.computes = AsyncComputes(core, name)
        self.events = AsyncEvents(core, name)
        self.experiments = AsyncExperiments(core, name)
        self.datastores = AsyncDatastores(core, name)
        self.quota = AsyncQuota(core, name)
        self.activities = AsyncActivities(core, name)
        self.secrets = AsyncSecrets(core, name)
        self.members = AsyncMembers(core, name)

    def start_run(
        self,
        *,
        experiment: str = "",
        name: str = "",
        display_name: str = "",
        description: str = "",
        parent: "AsyncRun | Recorder | str | None" = None,
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

    async def metrics(
        self,
        runs: "Iterable[AsyncRun | str]",
        metrics: Sequence[str] = (),
        *,
        method: str = "lttb",
        max_points: int = 0,
    ) -> Sequence[Series]:
        """See `AsyncRuns.histories`."""
        return await self.runs.histories(runs, metrics, method=method, max_points=max_points)

    async def why(self, name: str) -> telemetry_pb2.Explanation:
        """Why a resource is in its state: `runs/abc`, `endpoints/x`, or a run by its id alone."""
        resource = name if "/" in name else f"runs/{name}"
        if not resource.startswith("workspaces/"):
            resource = f"{self.name}/{resource}"
        stub = telemetry_pb2_grpc.TelemetryServiceStub(self._core.channel)
        return await self._core.call(stub.Explain, telemetry_pb2.ExplainRequest(name=resource))


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
