"""What a rollout is: one version of a deployment, from the request to its place in the history.

Pure rules; each changes the deployment that it is given.
"""

from collections.abc import Sequence

from google.protobuf.duration_pb2 import Duration

from stellwerk_inference.batches import settings as batch_settings
from stellwerk_inference.states import CREATING, FAILED, SUCCEEDED
from stellwerk_platform import names
from stellwerk_platform.documents import now
from stellwerk_platform.errors import FailedPrecondition, InvalidArgument, NotFound
from stellwerk_protos.common.v1.common_pb2 import File, Reason
from stellwerk_protos.compute.v1 import workloads_pb2
from stellwerk_protos.inference.v1 import endpoints_pb2 as pb

DEFAULT_LIMIT, MAX_LIMIT = 10, 20
SAMPLE_NAMES = ("sample-request.json", "sample_request.json")
# What MLflow lays beside the MLmodel file of a model with an example.
MODEL_SAMPLE_NAMES = ("serving_input_example.json", "input_example.json", *SAMPLE_NAMES)
MAX_SAMPLE_BYTES = 1024 * 1024
_DEFAULT_TIMEOUT_MS = 65_000
# The scoring server needs a moment beside the requests that it finishes.
_GRACE_MORE_SECONDS = 5


def find(deployment: pb.Deployment, number: int) -> pb.Rollout | None:
    """The rollout of that number, if it is kept."""
    return next((rollout for rollout in deployment.rollouts if rollout.number == number), None)


def target(deployment: pb.Deployment) -> pb.Rollout | None:
    """The rollout whose replicas are being started."""
    return find(deployment, deployment.target_rollout) if deployment.target_rollout else None


def workload(
    request: pb.CreateDeploymentRequest, models: Sequence[str], environment: str
) -> workloads_pb2.Workload:
    """What each replica has to do; `models` and `environment` with the numbers of versions."""
    inputs = [
        workloads_pb2.Input(name=names.id_of(names.parent_of(model)), resource=model) for model in models
    ]
    if len({entry.name for entry in inputs}) != len(inputs):
        raise InvalidArgument(
            "DUPLICATE_MODEL", "A model is named with two versions.", "Name each model once, or rename one."
        )
    # A request that is being answered may take its time-out before its replica is ended.
    seconds = -(-(request.request_settings.timeout_ms or _DEFAULT_TIMEOUT_MS) // 1_000) + _GRACE_MORE_SECONDS
    batch = None
    if request.HasField("batch_settings"):
        batch, seconds = batch_settings.filled(request.batch_settings), batch_settings.GRACE_SECONDS
    return workloads_pb2.Workload(
        kind=workloads_pb2.WORKLOAD_KIND_REPLICA,
        compute=request.compute,
        snapshot=request.snapshot,
        environment=environment,
        command=request.scoring_script,
        variables=request.variables,
        inputs=inputs,
        grace=Duration(seconds=seconds),
        data_collection=request.data_collection if request.HasField("data_collection") else None,
        batch_settings=batch,
    )


def sample_of(path: str, script: str, files: Sequence[File]) -> File | None:
    """The file with the sample request: the one that was asked for, else one beside the script.

    Without a script the files are those of the model, and the sample lies where MLflow puts it. Raises
    `NotFound` and `InvalidArgument` for one that was asked for and is not there or too large.
    """
    by_path = {file.path: file for file in files}
    if not path:
        beside = script or min((name for name in by_path if names.id_of(name) == "MLmodel"), default="")
        folder = beside.rpartition("/")[0]
        usual = SAMPLE_NAMES if script else MODEL_SAMPLE_NAMES
        paths = [f"{folder}/{name}" if folder else name for name in usual]
        found = (by_path[name] for name in paths if name in by_path)
        return next((file for file in found if file.size_bytes <= MAX_SAMPLE_BYTES), None)
    if path not in by_path:
        raise NotFound(
            "SAMPLE_NOT_FOUND",
            f"There is no {path[:200]!r} in the folder of the {'deployment' if script else 'model'}.",
            "Give the path of the sample request relative to that folder.",
        )
    if by_path[path].size_bytes > MAX_SAMPLE_BYTES:
        raise InvalidArgument(
            "SAMPLE_TOO_LARGE",
            f"The sample request has {by_path[path].size_bytes:,} bytes.",
            f"Use one of up to {MAX_SAMPLE_BYTES:,}.",
        )
    return by_path[path]


def begin(deployment: pb.Deployment, rollout: pb.Rollout) -> None:
    """Makes it the target: the next number is its own, and one that goes on is ended."""
    fail_target(
        deployment,
        Reason(code="ROLLOUT_SUPERSEDED", message="Another update came before its replicas were ready."),
    )
    rollout.number = max((kept.number for kept in deployment.rollouts), default=deployment.rollout) + 1
    rollout.create_time.CopyFrom(now())
    rollout.state = CREATING
    rollout.reason.CopyFrom(Reason(code="WAITING_FOR_COMPUTE", message="Waits for its replicas."))
    deployment.rollouts.append(rollout)
    deployment.target_rollout = rollout.number
    trim(deployment)


def fail_target(deployment: pb.Deployment, reason: Reason) -> None:
    """Ends the rollout that goes on, if there is one."""
    rollout = target(deployment)
    if rollout is not None:
        rollout.state = FAILED
        rollout.reason.CopyFrom(reason)
    deployment.target_rollout = 0


def serve_target(deployment: pb.Deployment, reason: Reason) -> None:
    """The target serves from now on."""
    rollout = target(deployment)
    assert rollout is not None
    rollout.state = SUCCEEDED
    rollout.reason.CopyFrom(reason)
    deployment.rollout, deployment.target_rollout = rollout.number, 0
    show(deployment, rollout)


def show(deployment: pb.Deployment, rollout: pb.Rollout) -> None:
    """Copies to the deployment what this rollout says of it."""
    deployment.workload.CopyFrom(rollout.workload)
    deployment.ClearField("request_settings")
    if rollout.HasField("request_settings"):
        deployment.request_settings.CopyFrom(rollout.request_settings)


def trim(deployment: pb.Deployment) -> None:
    """Forgets the oldest rollouts beyond the limit, but neither the one that serves nor the target."""
    held = {deployment.rollout, deployment.target_rollout}
    limit = deployment.rollout_limit or DEFAULT_LIMIT
    for rollout in list(deployment.rollouts):
        if len(deployment.rollouts) <= limit:
            return
        if rollout.number not in held:
            deployment.rollouts.remove(rollout)


def to_go_back_to(deployment: pb.Deployment, number: int) -> pb.Rollout:
    """The rollout that is meant; 0 is the one that served before this one, or this one if another goes on.

    Raises `NotFound` and `FailedPrecondition`.
    """
    if not number and deployment.target_rollout and deployment.rollout:
        number = deployment.rollout
    served = [r for r in deployment.rollouts if r.state == SUCCEEDED]
    if not number:
        earlier = [r for r in served if r.number < deployment.rollout]
        if not earlier:
            raise FailedPrecondition(
                "NO_EARLIER_ROLLOUT",
                f"No earlier rollout of {names.id_of(deployment.name)} that has served is kept.",
                "Update the deployment to what it should be.",
            )
        return earlier[-1]
    found = next((r for r in served if r.number == number), None)
    if found is None:
        kept = ", ".join(str(r.number) for r in served) or "none"
        raise NotFound(
            "ROLLOUT_NOT_FOUND",
            f"There is no rollout {number} of {names.id_of(deployment.name)} that has served.",
            f"Those that have and are kept: {kept}.",
        )
    return found


def models_of(deployment: pb.Deployment) -> set[str]:
    """The model versions that it serves, starts to serve, or can be rolled back to."""
    return {
        item.resource
        for rollout in deployment.rollouts
        if rollout.state != FAILED
        for item in rollout.workload.inputs
        if "/models/" in item.resource
    }
