"""BatchService: parse, check, change, reply."""

import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from stellwerk_inference.batches import domain, requests
from stellwerk_inference.batches.leases import Leases
from stellwerk_inference.batches.progress import Settler
from stellwerk_inference.batches.store import BatchStore
from stellwerk_inference.changes import Changes
from stellwerk_inference.endpoints.domain import PATTERN as ENDPOINT_PATTERN
from stellwerk_inference.replicas.domain import PATTERN as REPLICA_PATTERN
from stellwerk_inference.store import Store, endpoint_of
from stellwerk_inference.upstream import Upstream
from stellwerk_platform import names, roles
from stellwerk_platform.auth import current_caller
from stellwerk_platform.checks import check_tags
from stellwerk_platform.content import check_files
from stellwerk_platform.errors import InvalidArgument, PermissionDenied
from stellwerk_protos.common.v1.common_pb2 import Reason
from stellwerk_protos.inference.v1 import batches_pb2 as pb
from stellwerk_protos.inference.v1 import batches_pb2_grpc

_WORK_PATTERN = f"{domain.PATTERN}/miniBatches/*"
_MAX_HELD, _MAX_RESULTS = 100, 1_000
_REASON_LENGTH = 2_000
_LEASE_ID_LENGTH = 64
_WATCH_SECONDS = 1.0


class BatchService(batches_pb2_grpc.BatchServiceServicer):
    """The servicer."""

    def __init__(
        self,
        store: Store,
        batches: BatchStore,
        leases: Leases,
        settler: Settler,
        changes: Changes,
        upstream: Upstream,
    ) -> None:
        self._store = store
        self._batches = batches
        self._leases = leases
        self._settler = settler
        self._changes = changes
        self._upstream = upstream

    async def CreateBatchJob(self, request: pb.CreateBatchJobRequest, context: Any) -> pb.BatchJob:
        names.parse(ENDPOINT_PATTERN, request.parent)
        _check_person()
        check_tags(request.tags)
        requests.check_request(request)
        if (earlier := await self._batches.jobs.created_by(request.request_id)) is not None:
            return earlier
        endpoint = await self._store.endpoints.get(request.parent)
        existing = await self._store.deployments_of(request.parent)
        deployment = requests.choose(endpoint, existing, request.deployment)
        await self._upstream.check_start(names.parent_of(request.parent))
        version = await self._upstream.dataset(request.input)
        job_id = request.job_id or f"job-{secrets.token_hex(4)}"
        job = requests.new(request, job_id, deployment, version.name, current_caller().subject)
        pieces = requests.cut(job, version.files)
        return await self._batches.create(job, pieces, request.request_id, request.deployment)

    async def GetBatchJob(self, request: pb.GetBatchJobRequest, context: Any) -> pb.BatchJob:
        names.parse(domain.PATTERN, request.name)
        return await self._batches.get(request.name)

    async def ListBatchJobs(self, request: pb.ListBatchJobsRequest, context: Any) -> pb.ListBatchJobsResponse:
        names.parse(ENDPOINT_PATTERN, request.parent, wildcard=True)
        if names.id_of(request.parent) == names.WILDCARD:
            await self._upstream.check_workspace(names.parent_of(request.parent))
        else:
            await self._store.endpoints.get(request.parent)
        jobs, token = await self._batches.page_jobs(request)
        return pb.ListBatchJobsResponse(batch_jobs=jobs, next_page_token=token)

    async def WatchBatchJob(
        self, request: pb.WatchBatchJobRequest, context: Any
    ) -> AsyncIterator[pb.BatchJob]:
        names.parse(domain.PATTERN, request.name)
        sent: pb.BatchJob | None = None
        counted = 0.0
        with self._changes.watch() as waiter:
            while True:
                await waiter.next(_WATCH_SECONDS)
                # What others change wakes it too, and counting takes long where there is much to count.
                job = await self._batches.find(request.name)
                now = time.monotonic()
                if sent is not None and job.revision == sent.revision and now < counted + _WATCH_SECONDS:
                    continue
                job, counted = await self._batches.get(request.name), now
                if job != sent:
                    sent = job
                    yield job
                if job.state in domain.ENDED:
                    return

    async def CancelBatchJob(self, request: pb.CancelBatchJobRequest, context: Any) -> pb.BatchJob:
        names.parse(domain.PATTERN, request.name)
        _check_person()
        await self._batches.find(request.name)
        text = f"{current_caller().subject} asked for it."
        await self._batches.update(request.name, lambda job: domain.cancel(job, "CANCEL_REQUESTED", text))
        return await self._settler.settle(request.name)

    async def ListMiniBatches(
        self, request: pb.ListMiniBatchesRequest, context: Any
    ) -> pb.ListMiniBatchesResponse:
        names.parse(domain.PATTERN, request.parent)
        if request.state not in pb.MiniBatchState.values():
            raise InvalidArgument("INVALID_STATE", f"There is no state {request.state}.", "Use one that is.")
        job = await self._batches.find(request.parent)
        items, token = await self._batches.mini_batches.page(request)
        if not domain.keeps_parts(job):
            for item in items:
                item.ClearField("results")
        return pb.ListMiniBatchesResponse(mini_batches=items, next_page_token=token)

    async def LeaseMiniBatch(
        self, request: pb.LeaseMiniBatchRequest, context: Any
    ) -> pb.LeaseMiniBatchResponse:
        names.parse(REPLICA_PATTERN, request.parent)
        _check_replica(request.parent, request.parent)
        if len(request.held_lease_ids) > _MAX_HELD or any(
            len(held) > _LEASE_ID_LENGTH for held in request.held_lease_ids
        ):
            raise InvalidArgument(
                "INVALID_LEASES", "No replica holds such leases.", f"Name up to {_MAX_HELD}."
            )
        return await self._leases.next(request)

    async def RenewMiniBatch(
        self, request: pb.RenewMiniBatchRequest, context: Any
    ) -> pb.RenewMiniBatchResponse:
        names.parse(_WORK_PATTERN, request.name)
        _check_replica(request.replica, request.name)
        return await self._leases.renew(request)

    async def FinishMiniBatch(
        self, request: pb.FinishMiniBatchRequest, context: Any
    ) -> pb.FinishMiniBatchResponse:
        names.parse(_WORK_PATTERN, request.name)
        _check_replica(request.replica, request.name)
        if len(request.results) > _MAX_RESULTS:
            raise InvalidArgument(
                "TOO_MANY_FILES", f"{len(request.results)} results.", f"Send up to {_MAX_RESULTS}."
            )
        # With a lease that is lost, the blobs of results are let go: nothing unchecked.
        if request.results and request.HasField("failure"):
            raise InvalidArgument(
                "INVALID_RESULT", "What failed has no results.", "Send the failure or the results."
            )
        if request.results:
            check_files(request.results)
            workspace = f"workspaces/{names.workspace_of(request.name)}"
            await self._upstream.check_blobs(workspace, request.results)
        _shorten(request.failure if request.HasField("failure") else None)
        await self._leases.finish(request)
        return pb.FinishMiniBatchResponse()


def _check_person() -> None:
    """Raises `PermissionDenied` for the token of an endpoint, which is for requests."""
    if current_caller().role == roles.INVOKER:
        raise PermissionDenied(
            "PERMISSION_DENIED",
            "What opens an endpoint for requests does not start or end jobs.",
            "Use an API key or token of a person.",
        )


def _check_replica(replica: str, name: str) -> None:
    """Raises unless the caller is the replica, and works for its own endpoint."""
    names.parse(REPLICA_PATTERN, replica)
    caller = current_caller()
    if endpoint_of(replica) != endpoint_of(name) or (
        caller.role != roles.SERVICE and caller.subject != replica
    ):
        raise PermissionDenied(
            "PERMISSION_DENIED",
            f"{caller.subject} may not work as {replica}.",
            "Use the token of the replica.",
        )


def _shorten(reason: Reason | None) -> None:
    """What a script says may be long."""
    if reason is not None:
        reason.code = reason.code[:100] or "MINI_BATCH_FAILED"
        reason.message = reason.message[:_REASON_LENGTH]
        reason.cure = reason.cure[:_REASON_LENGTH]
