"""Makes jobs follow their mini-batches, and registers their results.

What there is to do is read from the store, after each step and by a loop, so that a
process that starts anew, or a second one, goes on where another stopped; each step may be
repeated. Progress only grows, so a job can be judged by what was read a moment before.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import grpc

from stellwerk_inference.batches import domain
from stellwerk_inference.batches.mini_batches.store import MERGE
from stellwerk_inference.batches.store import BatchStore
from stellwerk_inference.changes import Changes
from stellwerk_inference.store import Store
from stellwerk_inference.upstream import Upstream
from stellwerk_platform import failpoints, names
from stellwerk_platform.documents import now
from stellwerk_platform.errors import Aborted, Internal, PlatformError, ResourceExhausted, from_rpc
from stellwerk_platform.journal import Fact
from stellwerk_protos.common.v1.common_pb2 import File, Reason
from stellwerk_protos.inference.v1 import batches_pb2 as pb
from stellwerk_protos.registry.v1 import datasets_pb2

log = logging.getLogger(__name__)
_PAUSE_SECONDS = 0.1
_ACTOR = "services/inference"
# So long a full store or a quota may keep the results from being registered.
_PATIENCE = timedelta(seconds=60)
# A database that was made of the journal again has none.
_GONE = Reason(message="The mini-batches are gone.", cure="Submit the job again.")


class Settler:
    """Applies the rules of `domain.py` to what the store says."""

    def __init__(self, store: Store, batches: BatchStore, changes: Changes, upstream: Upstream) -> None:
        self._store = store
        self._batches = batches
        self._changes = changes
        self._upstream = upstream

    async def run(self) -> None:
        """Settles for ever."""
        with self._changes.watch() as waiter:
            while True:
                await waiter.next()
                try:
                    for job in await self._batches.open_jobs():
                        await self._attend(job)
                except Exception:
                    log.warning("Batch jobs are looked at again", exc_info=True)
                # Its own changes wake it as well.
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _attend(self, job: pb.BatchJob) -> None:
        try:
            await self._expire(job)
            job = await self.settle(job.name)
            if job.state == domain.FINALIZING:
                await self._finalize(job)
            elif job.state in domain.SCORING:
                await self._check_deployment(job)
        except Exception:
            log.warning("%s is looked at again", job.name, exc_info=True)

    async def _expire(self, job: pb.BatchJob) -> None:
        """What a replica had that has ended is for others at once."""
        holders = await self._batches.mini_batches.leaseholders(job.name)
        gone = await self._store.ended_replicas(holders) if holders else []
        if gone:
            await self._batches.mini_batches.expire(job.name, gone)
            self._changes.wake()

    async def start(self, name: str) -> pb.BatchJob:
        """The first mini-batch was taken."""
        return await self._apply(name, lambda job: domain.start(job, now()))

    async def settle(self, name: str, *, has_failed: bool = True) -> pb.BatchJob:
        """Moves a job to where its mini-batches are; raises `NotFound`.

        Not `has_failed`: no file has since it was settled last, so that nothing need be counted while a
        mini-batch is open; a job has up to 20,000.
        """
        job = await self._batches.jobs.get(name)
        if job.state == domain.CANCEL_REQUESTED:
            if await self._batches.mini_batches.is_worked_on(name):
                return job
            progress = await self._batches.mini_batches.progress(name)
            return await self._apply(name, lambda j: domain.canceled(j, progress, now()))
        if job.state not in domain.SCORING:
            return job
        is_open = await self._batches.mini_batches.is_open(name)
        if is_open and (job.settings.error_threshold < 0 or not has_failed):
            return job
        progress = await self._batches.mini_batches.progress(name)
        failure = domain.Failure()
        if progress.failed_file_count:
            failure = await self._batches.mini_batches.failure(name)
        return await self._apply(name, lambda j: domain.settle(j, progress, is_open, failure, now()))

    async def _apply(self, name: str, change: Callable[[pb.BatchJob], Fact | None]) -> pb.BatchJob:
        """Applies a rule; a job that comes to have its results put together gets that piece of work."""

        def by_service(job: pb.BatchJob) -> Fact | None:
            fact = change(job)
            return fact and replace(fact, actor=_ACTOR)

        return await self._batches.update(name, by_service)

    async def _check_deployment(self, job: pb.BatchJob) -> None:
        """A job cannot go on when its deployment has failed for good, and waits for what its replicas do."""
        deployment = await self._store.deployments.find(job.deployment)
        reason = domain.stranded(deployment)
        if reason is not None:
            await self._fail(job, reason)
        elif deployment is not None and job.state == domain.QUEUED:
            replicas = await self._store.replicas_of(deployment)
            await self._apply(job.name, lambda j: domain.wait(j, replicas))

    async def _fail(self, job: pb.BatchJob, reason: Reason) -> None:
        progress = await self._batches.mini_batches.progress(job.name)
        await self._apply(job.name, lambda j: domain.fail(j, reason, progress, now()))

    async def _finalize(self, job: pb.BatchJob) -> None:
        """Registers the results once they are whole."""
        if not domain.has_output(job):
            await self._apply(job.name, lambda j: domain.complete(j, "", now()))
            return
        if domain.needs_merge(job):
            # In this order: one that ends in between is found.
            is_open = await self._batches.mini_batches.is_open(job.name, MERGE)
            merge = await self._batches.mini_batches.merged(job.name)
            if merge is None and is_open:
                await self._check_deployment(job)
                return
            if merge is None:
                await self._fail(job, _named(_GONE, "RESULTS_NOT_MERGED", "put together"))
                return
            if merge.state == pb.MINI_BATCH_STATE_FAILED:
                await self._fail(job, _named(merge.reason, "RESULTS_NOT_MERGED", "put together"))
                return
            files: Sequence[File] = merge.results
        else:
            files = await self._batches.mini_batches.results(job.name)
        output = await self._register(job, files)
        failpoints.hit("batch.registered")
        if output:
            await self._apply(job.name, lambda j: domain.complete(j, output, now()))

    async def _register(self, job: pb.BatchJob, files: Sequence[File]) -> str:
        """The dataset version with the results; "" if it has to be tried again or the job has failed."""
        try:
            return await self._upstream.register(_version(job, files))
        except (PlatformError, grpc.aio.AioRpcError) as raised:
            error = from_rpc(raised) if isinstance(raised, grpc.aio.AioRpcError) else raised
        age = datetime.now(UTC) - job.update_time.ToDatetime(UTC)
        is_passing = error.retryable or isinstance(error, Aborted | Internal)
        if is_passing or (isinstance(error, ResourceExhausted) and age < _PATIENCE):
            log.warning("The results of %s are registered later: %s", job.name, error)
            return ""
        reason = Reason(code=error.reason, message=error.message, cure=error.cure)
        await self._fail(job, _named(reason, "RESULTS_NOT_REGISTERED", "registered"))
        return ""


def _version(job: pb.BatchJob, files: Sequence[File]) -> datasets_pb2.CreateDatasetVersionRequest:
    # The time tells it from an earlier job of that name, in a workspace that was deleted.
    return datasets_pb2.CreateDatasetVersionRequest(
        parent=job.output_dataset,
        description=f"What {names.id_of(job.deployment)} made of {job.input}.",
        tags={"batch_job": job.name, "deployment": job.deployment, "rollout": str(job.rollout)},
        source=job.name,
        files=files,
        request_id=f"{job.name}@{job.create_time.ToMilliseconds()}",
    )


def _named(reason: Reason, code: str, what: str) -> Reason:
    return Reason(
        code=code,
        message=f"The results could not be {what}: {reason.message or reason.code}",
        cure=reason.cure,
    )
