"""RunService: parse, check, store, reply."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from stellwerk_platform import names, telemetry
from stellwerk_platform.auth import current_caller
from stellwerk_platform.checks import check_description
from stellwerk_platform.documents import now, timestamp
from stellwerk_protos.compute.v1.workloads_pb2 import Input
from stellwerk_protos.runs.v1 import runs_pb2 as pb
from stellwerk_protos.runs.v1 import runs_pb2_grpc
from stellwerk_runs.changes import Changes
from stellwerk_runs.compare.service import Compare
from stellwerk_runs.runs import domain, interactive, states, words
from stellwerk_runs.runs.leases import LeaseStore
from stellwerk_runs.runs.store import RunStore
from stellwerk_runs.runs.trees import Trees
from stellwerk_runs.search.service import Search
from stellwerk_runs.snapshots.store import SnapshotStore
from stellwerk_runs.upstream import Compute, Registry, Secrets

RUN = "workspaces/*/runs/*"


@dataclass(frozen=True)
class Parts:
    """What the service stands on."""

    store: RunStore
    snapshots: SnapshotStore
    leases: LeaseStore
    trees: Trees
    changes: Changes
    registry: Registry
    compute: Compute
    secrets: Secrets


class RunService(runs_pb2_grpc.RunServiceServicer):
    """The servicer."""

    def __init__(self, parts: Parts) -> None:
        self._store = parts.store
        self._snapshots = parts.snapshots
        self._leases = parts.leases
        self._trees = parts.trees
        self._changes = parts.changes
        self._registry = parts.registry
        self._compute = parts.compute
        self._secrets = parts.secrets
        self._search = Search(parts.store)
        self._compare = Compare(parts.store, parts.snapshots, parts.registry)

    async def CreateRun(self, request: pb.CreateRunRequest, context: Any) -> pb.Run:
        domain.check_request(request)
        if (existing := await self._store.runs.created_by(request.request_id)) is not None:
            return existing
        domain.check_may_name(current_caller(), request.secrets)
        await self._resolve(request)
        creator, trace_id = current_caller().subject, telemetry.trace_id()

        def make() -> pb.Run:
            return domain.new_run(request, request.run_id or words.run_id(), creator, trace_id)

        leased = request.kind == pb.RUN_KIND_INTERACTIVE
        return await self._store.create(
            make,
            request.request_id,
            chosen=bool(request.run_id),
            beside=self._leases.grant_in if leased else None,
        )

    async def _resolve(self, request: pb.CreateRunRequest) -> None:
        """Checks that all it names exists, and puts numbers in the place of "latest"."""
        await self._registry.check_workspace(request.parent)
        await self._registry.quotas.check_start(request.parent)
        request.environment, *resources = await asyncio.gather(
            self._environment(request.environment),
            *(self._version(item) for item in request.inputs),
        )
        for item, resource in zip(request.inputs, resources, strict=True):
            item.resource = resource
        for secret in request.secrets:
            await self._secrets.check(secret)
        if request.compute:
            await self._compute.check(request.compute)
        if request.snapshot:
            await self._snapshots.check(request.snapshot)
        if request.cloned_from:
            await self._store.check(request.cloned_from)
        if request.git.patch:
            await self._registry.check_blob(request.parent, request.git.patch, "the git patch")

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
        where: dict[str, Any] = {"workspace": workspace}
        if request.experiment:
            names.parse("workspaces/*/experiments/*", request.experiment)
            where["experiment"] = request.experiment
        if request.parent_run:
            names.parse(RUN, request.parent_run)
            where["parent_run"] = request.parent_run
        if not request.include_archived:
            where["archive_time"] = {"$exists": False}
        await self._registry.check_workspace(request.parent)
        items, token = await self._store.runs.page(
            where, request.page_size, request.page_token, key="create_time", descending=True
        )
        return pb.ListRunsResponse(runs=items, next_page_token=token)

    async def SearchRuns(self, request: pb.SearchRunsRequest, context: Any) -> pb.SearchRunsResponse:
        names.parse("workspaces/*", request.parent)
        await self._registry.check_workspace(request.parent)
        return await self._search.find(request)

    async def CompareRuns(self, request: pb.CompareRunsRequest, context: Any) -> pb.CompareRunsResponse:
        (workspace,) = names.parse("workspaces/*", request.parent)
        for name in request.runs:
            domain.check_name(workspace, RUN, name)
        return await self._compare.compare(request)

    async def UpdateRun(self, request: pb.UpdateRunRequest, context: Any) -> pb.Run:
        names.parse(RUN, request.run.name)
        return await self._store.runs.update(
            request.run.name,
            lambda run: domain.update(run, request.run, request.update_mask.paths),
            request.etag,
        )

    async def ArchiveRun(self, request: pb.ArchiveRunRequest, context: Any) -> pb.Run:
        names.parse(RUN, request.name)
        return await self._store.runs.update(request.name, lambda run: states.archive(run, now()))

    async def RestoreRun(self, request: pb.RestoreRunRequest, context: Any) -> pb.Run:
        names.parse(RUN, request.name)
        return await self._store.runs.update(request.name, states.restore)

    async def RenewRun(self, request: pb.RenewRunRequest, context: Any) -> pb.RenewRunResponse:
        names.parse(RUN, request.name)
        run, expiry = await self._leases.renew(request.name)
        return pb.RenewRunResponse(
            lease_expire_time=timestamp(expiry),
            cancel_requested=run.state == pb.RUN_STATE_CANCEL_REQUESTED,
        )

    async def FinishRun(self, request: pb.FinishRunRequest, context: Any) -> pb.Run:
        names.parse(RUN, request.name)
        interactive.check_finish(request)
        moment = now()
        return await self._leases.finish(
            request.name, lambda run: interactive.finish(run, request.state, request.reason, moment)
        )

    async def CancelRun(self, request: pb.CancelRunRequest, context: Any) -> pb.Run:
        names.parse(RUN, request.name)
        check_description(request.message)
        return await self._trees.cancel(request.name, current_caller().subject, request.message)

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
