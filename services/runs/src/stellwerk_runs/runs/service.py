"""RunService: parse, check, store, reply."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from stellwerk_platform import names, telemetry
from stellwerk_platform.auth import current_caller
from stellwerk_platform.checks import check_description
from stellwerk_platform.documents import now
from stellwerk_protos.compute.v1.workloads_pb2 import Input
from stellwerk_protos.runs.v1 import runs_pb2 as pb
from stellwerk_protos.runs.v1 import runs_pb2_grpc
from stellwerk_runs.changes import Changes
from stellwerk_runs.runs import domain, states, words
from stellwerk_runs.runs.store import RunStore
from stellwerk_runs.snapshots.store import SnapshotStore
from stellwerk_runs.upstream import Compute, Registry

RUN = "workspaces/*/runs/*"


class RunService(runs_pb2_grpc.RunServiceServicer):
    """The servicer."""

    def __init__(
        self,
        store: RunStore,
        snapshots: SnapshotStore,
        changes: Changes,
        registry: Registry,
        compute: Compute,
    ) -> None:
        self._store = store
        self._snapshots = snapshots
        self._changes = changes
        self._registry = registry
        self._compute = compute

    async def CreateRun(self, request: pb.CreateRunRequest, context: Any) -> pb.Run:
        domain.check_request(request)
        if (existing := await self._store.runs.created_by(request.request_id)) is not None:
            return existing
        await self._resolve(request)
        creator, trace_id = current_caller().subject, telemetry.trace_id()

        def make() -> pb.Run:
            return domain.new_run(request, request.run_id or words.run_id(), creator, trace_id)

        return await self._store.create(make, request.request_id, chosen=bool(request.run_id))

    async def _resolve(self, request: pb.CreateRunRequest) -> None:
        """Checks that all it names exists, and puts numbers in the place of "latest"."""
        await self._registry.check_workspace(request.parent)
        request.environment, *resources = await asyncio.gather(
            self._environment(request.environment),
            *(self._version(item) for item in request.inputs),
        )
        for item, resource in zip(request.inputs, resources, strict=True):
            item.resource = resource
        await self._compute.check(request.compute)
        if request.snapshot:
            await self._snapshots.check(request.snapshot)

    async def _environment(self, name: str) -> str:
        return await self._registry.environment(name) if name else ""

    async def _version(self, item: Input) -> str:
        find = self._registry.dataset if domain.kind_of(item) == "datasets" else self._registry.model
        return await find(item.resource)

    async def GetRun(self, request: pb.GetRunRequest, context: Any) -> pb.Run:
        names.parse(RUN, request.name)
        return await self._store.runs.get(request.name)

    async def ListRuns(self, request: pb.ListRunsRequest, context: Any) -> pb.ListRunsResponse:
        (workspace,) = names.parse("workspaces/*", request.parent)
        where = {"workspace": workspace}
        if request.experiment:
            names.parse("workspaces/*/experiments/*", request.experiment)
            where["experiment"] = request.experiment
        await self._registry.check_workspace(request.parent)
        items, token = await self._store.runs.page(
            where, request.page_size, request.page_token, key="create_time", descending=True
        )
        return pb.ListRunsResponse(runs=items, next_page_token=token)

    async def CancelRun(self, request: pb.CancelRunRequest, context: Any) -> pb.Run:
        names.parse(RUN, request.name)
        check_description(request.message)
        actor = current_caller().subject
        return await self._store.runs.update(
            request.name, lambda run: states.request_cancel(run, actor, request.message, now())
        )

    async def WatchRun(self, request: pb.WatchRunRequest, context: Any) -> AsyncIterator[pb.Run]:
        names.parse(RUN, request.name)
        revision = 0
        with self._changes.watch(request.name) as changed:
            while True:
                changed.clear()
                run = await self._store.runs.get(request.name)
                if run.revision > revision:
                    revision = run.revision
                    yield run
                if states.is_terminal(run.state):
                    return
                await changed.wait()

    async def ListExperiments(
        self, request: pb.ListExperimentsRequest, context: Any
    ) -> pb.ListExperimentsResponse:
        (workspace,) = names.parse("workspaces/*", request.parent)
        await self._registry.check_workspace(request.parent)
        items, token = await self._store.experiments.page(
            {"workspace": workspace}, request.page_size, request.page_token
        )
        return pb.ListExperimentsResponse(experiments=items, next_page_token=token)
