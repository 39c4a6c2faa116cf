"""What may be asked for as a batch job, and the job and mini-batches that a request makes. Pure rules."""

from collections.abc import Sequence

from stellwerk_inference.batches import settings as batch_settings
from stellwerk_inference.batches.domain import QUEUED
from stellwerk_inference.states import LEAVING, SUCCEEDED
from stellwerk_platform import names
from stellwerk_platform.errors import (
    Aborted,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from stellwerk_protos.common.v1.common_pb2 import File, Reason
from stellwerk_protos.inference.v1 import batches_pb2 as pb
from stellwerk_protos.inference.v1 import endpoints_pb2

_INPUT_PATTERN = "workspaces/*/datasets/*/versions/*"
_DATASET_PATTERN = "workspaces/*/datasets/*"
_MAX_MINI_BATCHES = 20_000
MAX_OPEN_JOBS = 200
_SUFFIX = "-results"
_ID_LENGTH = 63
_PATH_LENGTH = 4_096
_SHOWN = 500


def check_request(request: pb.CreateBatchJobRequest) -> None:
    """Raises `InvalidArgument` for what can be seen without asking anybody."""
    workspace = names.workspace_of(request.parent)
    if request.job_id:
        names.check_id("jobs", request.job_id)
    if request.deployment:
        names.check_id("deployments", request.deployment)
    if not request.input:
        raise InvalidArgument(
            "INPUT_MISSING",
            "The job has no input.",
            "Name a dataset version, like images:1, as `input`.",
        )
    names.parse(_INPUT_PATTERN, request.input)
    if request.output_dataset:
        names.parse(_DATASET_PATTERN, request.output_dataset)
    if len(request.input_path) > _PATH_LENGTH:
        raise InvalidArgument(
            "INVALID_PATH", "The path is too long.", f"Use up to {_PATH_LENGTH:,} characters."
        )
    for name in (request.input, request.output_dataset):
        if name and names.workspace_of(name) != workspace:
            raise InvalidArgument(
                "OTHER_WORKSPACE", f"{name} is not in the endpoint's workspace.", "Use one of its own."
            )
    batch_settings.check(request.settings)


def choose(
    endpoint: endpoints_pb2.Endpoint, deployments: Sequence[endpoints_pb2.Deployment], wanted: str
) -> endpoints_pb2.Deployment:
    """The deployment that a job is for: the one that is wanted, else the one with the traffic.

    Raises `FailedPrecondition` and `NotFound`.
    """
    check_batch(endpoint)
    if not wanted:
        wanted = max(endpoint.traffic, key=lambda name: endpoint.traffic[name], default="")
    if not wanted:
        raise FailedPrecondition(
            "NO_DEPLOYMENT_READY",
            f"No deployment of {names.id_of(endpoint.name)} gets the jobs.",
            "Create one (`stellwerk deployment create`), wait until it is ready, or give one the traffic.",
        )
    found = next((d for d in deployments if names.id_of(d.name) == wanted and d.state not in LEAVING), None)
    if found is None:
        raise NotFound(
            "DEPLOYMENT_NOT_FOUND",
            f"There is no deployment {wanted[:80]!r} at {endpoint.name}.",
            "List the deployments of the endpoint.",
        )
    _check_ready(found)
    return found


def check_batch(endpoint: endpoints_pb2.Endpoint) -> None:
    """Raises `FailedPrecondition` for an endpoint that answers requests."""
    if endpoint.kind != endpoints_pb2.ENDPOINT_KIND_BATCH:
        raise FailedPrecondition(
            "ENDPOINT_NOT_BATCH",
            f"{names.id_of(endpoint.name)} answers requests; it takes no jobs.",
            f"Send it requests ({endpoint.path}/score), or create a batch endpoint.",
        )


def _check_ready(deployment: endpoints_pb2.Deployment) -> None:
    shown = names.id_of(deployment.name)
    endpoint = names.id_of(names.parent_of(deployment.name))
    # Below it there may be the end of a log.
    first_line = (deployment.reason.message or deployment.reason.code).partition("\n")[0]
    if deployment.state != SUCCEEDED:
        raise FailedPrecondition(
            "DEPLOYMENT_NOT_READY",
            f"{shown} is not ready: {first_line}",
            f"See `stellwerk deployment show {shown} --endpoint {endpoint}`.",
        )
    if deployment.target_rollout:
        raise FailedPrecondition(
            "ROLLOUT_GOES_ON",
            f"Rollout {deployment.target_rollout} of {shown} goes on, and a job keeps to one rollout.",
            "Wait until it serves or has failed (`stellwerk deployment watch`).",
        )


def check_same(job: pb.BatchJob, deployment: endpoints_pb2.Deployment) -> None:
    """Raises `Aborted` unless this is still what the job was made for."""
    if (job.deployment, job.rollout) != (deployment.name, deployment.rollout):
        raise Aborted(
            "DEPLOYMENT_CHANGED", "Another deployment or rollout serves by now.", "Submit the job again."
        )


def check_room(endpoint: str, open_jobs: int) -> None:
    """Raises `ResourceExhausted` when too many jobs of an endpoint have not ended."""
    if open_jobs >= MAX_OPEN_JOBS:
        raise ResourceExhausted(
            "TOO_MANY_JOBS",
            f"{open_jobs} jobs of {names.id_of(endpoint)} have not ended.",
            "Wait for some of them, cancel some, or score more files with one job.",
        )


def new(
    request: pb.CreateBatchJobRequest,
    job_id: str,
    deployment: endpoints_pb2.Deployment,
    input_version: str,
    creator: str,
) -> pb.BatchJob:
    """The job of a request, without its progress; `input_version` with the number."""
    return pb.BatchJob(
        name=f"{request.parent}/jobs/{job_id}",
        creator=creator,
        tags=request.tags,
        state=QUEUED,
        deployment=deployment.name,
        rollout=deployment.rollout,
        input=input_version,
        input_path=request.input_path,
        settings=batch_settings.of_job(deployment.workload.batch_settings, request.settings),
        output_dataset=request.output_dataset or _default_output(request.parent),
    )


def _default_output(endpoint: str) -> str:
    workspace, endpoint_id = names.parent_of(endpoint), names.id_of(endpoint)
    return f"{workspace}/datasets/{endpoint_id[: _ID_LENGTH - len(_SUFFIX)]}{_SUFFIX}"


def cut(job: pb.BatchJob, files: Sequence[File]) -> list[list[File]]:
    """The mini-batches of a job, by path; its progress is set. Raises `InvalidArgument`."""
    chosen = sorted((f for f in files if f.path.startswith(job.input_path)), key=lambda f: f.path)
    if not chosen:
        where = f" whose path begins with {job.input_path[:200]!r}" if job.input_path else ""
        some = ", ".join(file.path for file in files[:3])
        raise InvalidArgument(
            "NO_INPUT_FILES",
            f"{job.input} has no file{where}.",
            f"It has {len(files):,}: {some[:_SHOWN]}." if files else "Use a dataset with files.",
        )
    size = job.settings.mini_batch_size
    pieces = [chosen[start : start + size] for start in range(0, len(chosen), size)]
    if len(pieces) > _MAX_MINI_BATCHES:
        raise InvalidArgument(
            "TOO_MANY_MINI_BATCHES",
            f"{len(chosen):,} files make {len(pieces):,} mini-batches of {size}, over {_MAX_MINI_BATCHES:,}.",
            f"Use mini-batches of {-(-len(chosen) // _MAX_MINI_BATCHES)} files or more.",
        )
    job.progress.mini_batch_count, job.progress.file_count = len(pieces), len(chosen)
    job.reason.CopyFrom(
        Reason(code="WAITING_FOR_REPLICA", message=f"{len(pieces):,} mini-batches wait for a replica.")
    )
    return pieces
