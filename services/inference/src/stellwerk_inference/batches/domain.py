"""The life of a batch job. No clock, no I/O.

Each rule changes the job and returns the fact to record, or None when there is nothing
to do, so that anything may be handled twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.timestamp_pb2 import Timestamp

from stellwerk_inference.batches import settings as batch_settings
from stellwerk_inference.states import CREATING as REPLICA_CREATING
from stellwerk_inference.states import FAILED as DEPLOYMENT_FAILED
from stellwerk_inference.states import SUCCEEDED
from stellwerk_platform import names
from stellwerk_platform.errors import FailedPrecondition
from stellwerk_platform.journal import Fact
from stellwerk_protos.common.v1.common_pb2 import Reason
from stellwerk_protos.compute.v1.workloads_pb2 import BATCH_OUTPUT_ACTION_SUMMARY_ONLY
from stellwerk_protos.inference.v1 import batches_pb2 as pb
from stellwerk_protos.inference.v1 import endpoints_pb2

PATTERN = "workspaces/*/endpoints/*/jobs/*"
MERGE = "merge"
# A mini-batch whose lease was lost so often kills every node that takes it.
MAX_LOST = 10
_SHOWN = 500

State = pb.BatchJobState
QUEUED, RUNNING = pb.BATCH_JOB_STATE_QUEUED, pb.BATCH_JOB_STATE_RUNNING
FINALIZING, COMPLETED = pb.BATCH_JOB_STATE_FINALIZING, pb.BATCH_JOB_STATE_COMPLETED
FAILED, CANCELED = pb.BATCH_JOB_STATE_FAILED, pb.BATCH_JOB_STATE_CANCELED
CANCEL_REQUESTED = pb.BATCH_JOB_STATE_CANCEL_REQUESTED
# Mini-batches are given out.
SCORING = frozenset({QUEUED, RUNNING})
ENDED = frozenset({COMPLETED, FAILED, CANCELED})
OPEN = frozenset({QUEUED, RUNNING, FINALIZING, CANCEL_REQUESTED})

_VERBS = {
    RUNNING: "started",
    FINALIZING: "finalizing",
    COMPLETED: "completed",
    FAILED: "failed",
    CANCEL_REQUESTED: "cancel_requested",
    CANCELED: "canceled",
}


@dataclass(frozen=True)
class Failure:
    """One that failed, for the reason of the job."""

    mini_batch: str = ""
    file: str = ""
    message: str = ""


def wait(job: pb.BatchJob, replicas: Sequence[endpoints_pb2.Replica]) -> Fact | None:
    """Tells what the replica waits for that a job waits for."""
    mine = [replica for replica in replicas if replica.rollout == job.rollout]
    starting = next((replica for replica in mine if replica.state == REPLICA_CREATING), None)
    if job.state != QUEUED or starting is None or any(r.state == SUCCEEDED for r in mine):
        return None
    reason = Reason(
        code=starting.reason.code,
        message=f"Waits for a replica: {starting.reason.message or starting.reason.code}",
        cure=starting.reason.cure,
    )
    if reason == job.reason:
        return None
    job.reason.CopyFrom(reason)
    return Fact("progressed", reason.code, reason.message)


def start(job: pb.BatchJob, now: Timestamp) -> Fact | None:
    """The first mini-batch was taken."""
    if job.state != QUEUED:
        return None
    job.start_time.CopyFrom(now)
    return _move(job, RUNNING, Reason(code="SCORING", message="Its mini-batches are being scored."))


def settle(
    job: pb.BatchJob, progress: pb.BatchProgress, is_open: bool, failure: Failure, now: Timestamp
) -> Fact | None:
    """What its mini-batches make of a job: too many have failed, or none is left.

    `is_open` says whether one is left; `failure` is an example of what went wrong.
    """
    if job.state not in SCORING:
        return None
    threshold, failed = job.settings.error_threshold, progress.failed_file_count
    if 0 <= threshold < failed:
        message = f"{failed:,} of {progress.file_count:,} files failed, over {threshold:,}"
        return _fail(job, "ERROR_THRESHOLD_EXCEEDED", message, failure, progress, now)
    if is_open:
        return None
    if not progress.succeeded_file_count:
        message = f"None of {progress.file_count:,} files was scored"
        return _fail(job, "NOTHING_SCORED", message, failure, progress, now)
    job.progress.CopyFrom(progress)
    scored = f"{progress.succeeded_file_count:,} of {progress.file_count:,} files are scored"
    return _move(job, FINALIZING, Reason(code="MINI_BATCHES_DONE", message=f"{scored}."))


def shortfall(request: pb.FinishMiniBatchRequest, file_count: int) -> Reason | None:
    """Why files of a mini-batch count as failed though its call did not fail; None if none does."""
    missing = file_count - request.succeeded_file_count
    if missing <= 0:
        return None
    return Reason(
        code="RESULTS_MISSING",
        message=f"run() returned nothing for {missing:,} of {file_count:,} files.",
        cure="Return one element for each file that could be scored.",
    )


def _fail(
    job: pb.BatchJob, code: str, message: str, failure: Failure, progress: pb.BatchProgress, now: Timestamp
) -> Fact:
    example = f"; for example {failure.file}: {failure.message}" if failure.file else ""
    endpoint = names.id_of(names.parent_of(job.name))
    deployment = names.id_of(job.deployment)
    # Those that fell short have succeeded.
    only = " --state failed" if progress.failed_mini_batch_count else ""
    reason = Reason(
        code=code,
        message=f"{message}{example[:_SHOWN].rstrip('.')}.",
        cure=f"See `stellwerk batch mini-batches {endpoint} {names.id_of(job.name)}{only}` and "
        f"`stellwerk deployment logs {endpoint} {deployment}`.",
    )
    return end(job, FAILED, reason, progress, now)


def end(
    job: pb.BatchJob,
    state: State.ValueType,
    reason: Reason,
    progress: pb.BatchProgress,
    now: Timestamp,
) -> Fact:
    """A terminal state."""
    job.progress.CopyFrom(progress)
    job.progress.running_mini_batch_count = 0
    job.end_time.CopyFrom(now)
    return _move(job, state, reason)


def fail(job: pb.BatchJob, reason: Reason, progress: pb.BatchProgress, now: Timestamp) -> Fact | None:
    """It cannot go on."""
    if job.state not in OPEN or job.state == CANCEL_REQUESTED:
        return None
    return end(job, FAILED, reason, progress, now)


def complete(job: pb.BatchJob, output: str, now: Timestamp) -> Fact | None:
    """Its results are registered under this name, or are none of a dataset's."""
    if job.state != FINALIZING:
        return None
    job.output = output
    failed = job.progress.failed_file_count
    note = f" {failed:,} files failed." if failed else ""
    where = f"The results are {output.split('/', 2)[-1]}." if output else "The results are only counted."
    reason = Reason(code="COMPLETED", message=f"{where}{note}")
    return end(job, COMPLETED, reason, job.progress, now)


def cancel(job: pb.BatchJob, code: str, message: str) -> Fact | None:
    """Asks for the end; raises `FailedPrecondition` for a job that has ended another way."""
    if job.state in (COMPLETED, FAILED):
        raise FailedPrecondition(
            "BATCH_JOB_ENDED",
            f"{names.id_of(job.name)} has ended: {job.reason.message}",
            "There is nothing to cancel.",
        )
    if job.state in (CANCEL_REQUESTED, CANCELED):
        return None
    return _move(job, CANCEL_REQUESTED, Reason(code=code, message=message))


def canceled(job: pb.BatchJob, progress: pb.BatchProgress, now: Timestamp) -> Fact | None:
    """Nobody works on it any more."""
    if job.state != CANCEL_REQUESTED:
        return None
    reason = Reason()
    reason.CopyFrom(job.reason)
    return end(job, CANCELED, reason, progress, now)


def is_earlier(job: pb.BatchJob, endpoint: endpoints_pb2.Endpoint | None) -> bool:
    """Whether it is a job of an endpoint that was deleted, when there is another one of that name by now."""
    return endpoint is not None and job.create_time.ToNanoseconds() < endpoint.create_time.ToNanoseconds()


def stranded(deployment: endpoints_pb2.Deployment | None) -> Reason | None:
    """Why the jobs of a deployment can never go on; None while they can."""
    if deployment is not None and deployment.state != DEPLOYMENT_FAILED:
        return None
    said = deployment.reason.message if deployment is not None else "It is gone."
    cure = deployment.reason.cure if deployment is not None else ""
    return Reason(
        code="DEPLOYMENT_FAILED",
        message=f"The deployment failed: {said[:_SHOWN]}",
        cure=cure or "Correct the deployment (`stellwerk deployment update`), then submit the job again.",
    )


def refuse_change(job: str) -> FailedPrecondition:
    """The error for a change of a deployment that has jobs."""
    shown = f"{names.id_of(names.parent_of(job))} {names.id_of(job)}"
    return FailedPrecondition(
        "BATCH_JOBS_RUNNING",
        f"The job {names.id_of(job)} is not over, and it keeps to the rollout that it began with.",
        f"Wait for it (`stellwerk batch watch {shown}`), or cancel it (`stellwerk batch cancel {shown}`).",
        {"job": job},
    )


def needs_merge(job: pb.BatchJob) -> bool:
    """Whether a replica has to put the results together."""
    return batch_settings.is_append(job.settings)


def keeps_parts(job: pb.BatchJob) -> bool:
    """Whether the results of its mini-batches are needed: to put them together, or as its output."""
    return job.state not in ENDED or (job.state == COMPLETED and not needs_merge(job))


def has_output(job: pb.BatchJob) -> bool:
    """Whether results become a dataset version."""
    return job.settings.output_action != BATCH_OUTPUT_ACTION_SUMMARY_ONLY


def mini_batch_name(job: str, index: int) -> str:
    """Of the mini-batch with this index, from 0."""
    return f"{job}/miniBatches/{index}"


def merge_name(job: str) -> str:
    """Of the piece of work that puts the results together."""
    return f"{job}/miniBatches/{MERGE}"


def _move(job: pb.BatchJob, state: State.ValueType, reason: Reason) -> Fact:
    job.state = state
    job.reason.CopyFrom(reason)
    return Fact(_VERBS[state], reason.code, reason.message)
