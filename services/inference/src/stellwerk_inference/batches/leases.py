"""Who works on which mini-batch: leases that are taken, kept, and ended by a result.

A replica asks with one call at a time and gets the oldest job's first open mini-batch. A
lease that is not renewed runs out, and the mini-batch goes to whoever asks next: nobody
has to notice that a node has died.
"""

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from stellwerk_inference.batches import domain
from stellwerk_inference.batches.mini_batches.store import MERGE, SCORE, Taken
from stellwerk_inference.batches.progress import Settler
from stellwerk_inference.batches.store import BatchStore
from stellwerk_inference.changes import Changes
from stellwerk_inference.replicas.domain import deployment_of
from stellwerk_inference.states import NOT_RESPONDING, SUCCEEDED
from stellwerk_inference.store import Store, endpoint_of
from stellwerk_platform import names
from stellwerk_platform.documents import timestamp
from stellwerk_platform.errors import Aborted, InvalidArgument, NotFound
from stellwerk_protos.common.v1.common_pb2 import Reason
from stellwerk_protos.inference.v1 import batches_pb2 as pb
from stellwerk_protos.inference.v1 import endpoints_pb2
from stellwerk_protos.secrets.v1 import tokens_pb2

if TYPE_CHECKING:
    from stellwerk_protos.secrets.v1.tokens_pb2_grpc import TokenServiceAsyncStub

_WAIT_SECONDS = 20.0
_POLL_SECONDS = 2.0
_MAX_TOKENS = 10_000
_WORKING = frozenset({SUCCEEDED, NOT_RESPONDING})
_LOST = Reason(
    code="MINI_BATCH_LOST",
    message=f"{domain.MAX_LOST} replicas that had it were not heard of again: it may end their processes.",
    cure="See whether its files need more memory than a replica has.",
)


class Tokens:
    """A token for each job to show the scoring servers of its endpoint, renewed at half its life.

    By job, because the tokens of an endpoint end with it, and another one may have its name later.
    """

    def __init__(self, stub: "TokenServiceAsyncStub") -> None:
        self._stub = stub
        self._known: dict[str, tuple[str, float]] = {}

    async def issue(self, job: pb.BatchJob) -> str:
        """What scoring servers of the job's endpoint take."""
        # Another job may have its name later, too.
        key = f"{job.name}@{job.create_time.ToMilliseconds()}"
        token, renew_time = self._known.get(key, ("", 0.0))
        if time.time() < renew_time:
            return token
        answer = await self._stub.IssueWorkloadToken(
            tokens_pb2.IssueWorkloadTokenRequest(owner=endpoint_of(job.name)), timeout=10
        )
        now = time.time()
        if len(self._known) >= _MAX_TOKENS:
            self._known.clear()
        self._known[key] = answer.token, now + (answer.expire_time.seconds - now) / 2
        return answer.token


class Leases:
    """The nodes' side of batch scoring."""

    def __init__(
        self, store: Store, batches: BatchStore, settler: Settler, changes: Changes, tokens: Tokens
    ) -> None:
        self._store = store
        self._batches = batches
        self._settler = settler
        self._changes = changes
        self._tokens = tokens

    async def next(self, request: pb.LeaseMiniBatchRequest) -> pb.LeaseMiniBatchResponse:
        """Work for a replica, or nothing after some seconds without any."""
        asked = datetime.now(UTC)
        until = time.monotonic() + _WAIT_SECONDS
        replica = await self._store.replicas.get(request.parent)
        with self._changes.watch() as waiter:
            while True:
                await waiter.next(_POLL_SECONDS)
                if replica.state in _WORKING:
                    taken = await self._take(replica, request, asked)
                    if taken is not None:
                        return pb.LeaseMiniBatchResponse(lease=taken)
                if time.monotonic() >= until:
                    return pb.LeaseMiniBatchResponse()
                replica = await self._store.replicas.get(request.parent)

    async def _take(
        self, replica: endpoints_pb2.Replica, request: pb.LeaseMiniBatchRequest, asked: datetime
    ) -> pb.MiniBatchLease | None:
        deployment = deployment_of(replica.name)
        for job in await self._batches.working_jobs(deployment, replica.rollout):
            kind = MERGE if job.state == domain.FINALIZING else SCORE
            # Before the lease: one that cannot be handed out would count as lost.
            token = await self._tokens.issue(job)
            while taken := await self._batches.mini_batches.take(
                job.name, kind, replica.name, request.held_lease_ids, asked
            ):
                if taken.lost_count >= domain.MAX_LOST:
                    await self._batches.mini_batches.give_up(taken, _LOST)
                    await self._settler.settle(job.name)
                elif await self._begun(job, taken):
                    return _lease(job, taken, token)
                else:
                    break
        return None

    async def _begun(self, job: pb.BatchJob, taken: Taken) -> bool:
        """Whether the job still wants the work, now that nobody else has it."""
        if job.state == domain.QUEUED:
            job = await self._settler.start(job.name)
        else:
            job = await self._batches.jobs.get(job.name)
        if _wants(job, taken.kind):
            return True
        await self._batches.mini_batches.release(taken.name, taken.lease_id)
        return False

    async def renew(self, request: pb.RenewMiniBatchRequest) -> pb.RenewMiniBatchResponse:
        """Keeps a lease, and stays as long as the request says; raises `Aborted`, then too."""
        until = time.monotonic() + min(request.wait_seconds, _WAIT_SECONDS)
        with self._changes.watch("batch_job") as waiter:
            await waiter.next()
            await self._check_wanted(request.name, request.lease_id)
            expire = await self._batches.mini_batches.renew(request.name, request.lease_id, request.replica)
            if expire is None:
                raise lost(request.name)
            while (remaining := until - time.monotonic()) > 0:
                await waiter.next(min(remaining, _POLL_SECONDS))
                await self._check_wanted(request.name, request.lease_id)
        return pb.RenewMiniBatchResponse(expire_time=timestamp(expire))

    async def finish(self, request: pb.FinishMiniBatchRequest) -> None:
        """Takes what came of a lease, and what follows for the job; raises `Aborted`."""
        try:
            await self._finish(request)
        except (Aborted, NotFound):
            await self._batches.let_go(request)
            raise

    async def _finish(self, request: pb.FinishMiniBatchRequest) -> None:
        job = await self._check_wanted(request.name, request.lease_id)
        found = await self._batches.mini_batches.find(request.name)
        if found is None:
            raise missing(request.name)
        if request.HasField("failure"):
            kept = await self._batches.mini_batches.fail(request, job.settings.max_retries)
        else:
            is_merge = request.name == domain.merge_name(job.name)
            check_counts(request, found[1], is_merge=is_merge)
            shortfall = None if is_merge else domain.shortfall(request, found[1])
            kept = await self._batches.mini_batches.succeed(request, shortfall)
        if not kept:
            raise lost(request.name)
        if request.HasField("failure"):
            self._changes.wake()  # it may wait again, which is no event
        has_failed = request.HasField("failure") or request.succeeded_file_count < found[1]
        await self._settler.settle(job.name, has_failed=has_failed)

    async def _check_wanted(self, name: str, lease_id: str) -> pb.BatchJob:
        """The job, which still wants the work; else the lease ends, and `Aborted` says so."""
        job = await self._batches.jobs.find(names.parent_of(name))
        if job is None:
            raise missing(name)
        is_merge = name == domain.merge_name(job.name)
        if _wants(job, MERGE if is_merge else SCORE):
            return job
        if job.state in domain.ENDED or job.state == domain.CANCEL_REQUESTED:
            await self._batches.mini_batches.release(name, lease_id)
            await self._settler.settle(job.name)
            raise lost(name)
        return job  # its scoring is over: the one who finished it may say so again


def _lease(job: pb.BatchJob, taken: Taken, token: str) -> pb.MiniBatchLease:
    return pb.MiniBatchLease(
        name=taken.name,
        lease_id=taken.lease_id,
        merge_into=job.settings.output_file_name if taken.kind == MERGE else "",
        files=taken.files,
        settings=job.settings,
        expire_time=timestamp(taken.expire_time),
        token=token,
    )


def _wants(job: pb.BatchJob, kind: str) -> bool:
    if kind == MERGE:
        return job.state == domain.FINALIZING
    return job.state in domain.SCORING


def check_counts(request: pb.FinishMiniBatchRequest, file_count: int, *, is_merge: bool) -> None:
    """Raises `InvalidArgument` for counts that cannot be."""
    if is_merge:
        if len(request.results) != 1:
            raise InvalidArgument("INVALID_RESULT", "A merge has one file.", "Send the one.")
        return
    if not 0 <= request.succeeded_file_count <= file_count or request.row_count < 0:
        raise InvalidArgument(
            "INVALID_RESULT",
            f"{request.succeeded_file_count} of {file_count} files and {request.row_count} rows cannot be.",
            "Count the files that were scored, and the rows of the results.",
        )
    # All results of a job are read at once when they are registered.
    if len(request.results) > file_count:
        raise InvalidArgument(
            "INVALID_RESULT",
            f"{len(request.results)} results of {file_count} files cannot be.",
            "Send one of all files, or one of each.",
        )


def lost(name: str) -> Aborted:
    """The error for a lease that is somebody else's, or of a job that has ended."""
    return Aborted(
        "LEASE_LOST",
        f"The lease of {name} is lost, or its job has ended.",
        "Drop the work, and ask for more.",
    )


def missing(name: str) -> NotFound:
    """The error for a piece of work that is not there."""
    return NotFound("MINI_BATCH_NOT_FOUND", f"There is no {name}.", "Drop the work, and ask for more.")
