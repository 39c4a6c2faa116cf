"""What may be asked of a deployment: bounds, and the request that would make it anew. Pure rules."""

import re
from collections.abc import Mapping, Sequence

from stellwerk_inference.autoscale import domain as autoscale
from stellwerk_inference.collected import domain as collected
from stellwerk_inference.deployments import rollouts
from stellwerk_platform import names
from stellwerk_platform.errors import FailedPrecondition, InvalidArgument, NotFound
from stellwerk_protos.common.v1.common_pb2 import File
from stellwerk_protos.inference.v1 import endpoints_pb2 as pb
from stellwerk_protos.registry.v1.models_pb2 import ModelVersion

PATTERN = "workspaces/*/endpoints/*/deployments/*"
_VARIABLES_LENGTH = 32 * 1024
# What the scoring server loads without a script; beside them MLflow's folders, which have an MLmodel file.
PICKLES = (".pkl", ".pickle", ".joblib")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

# Fields of an update, named as in the request that creates a deployment.
UPDATABLE = frozenset(
    {
        *("models", "environment", "snapshot", "scoring_script", "compute", "replica_count", "variables"),
        *("request_settings", "sample", "rollout_limit", "data_collection", "batch_settings"),
    }
)
_SETTINGS_LIMITS = {
    "timeout_ms": 3_600_000,
    "max_concurrent_requests": 10_000,
    "max_queued_requests": 100_000,
}


def check_request(request: pb.CreateDeploymentRequest) -> None:
    """Raises `InvalidArgument` for what can be seen without asking anybody."""
    workspace = names.workspace_of(request.parent)
    names.check_id("deployments", request.deployment_id)
    names.parse("workspaces/*/environments/*/versions/*", request.environment)
    names.parse("workspaces/*/computes/*", request.compute)
    if not request.models:
        raise InvalidArgument("MODEL_MISSING", "The deployment names no model.", "Name at least one version.")
    for model in request.models:
        names.parse("workspaces/*/models/*/versions/*", model)
    _check_code(request)
    for name in (request.environment, request.snapshot, request.compute, *request.models):
        if name and names.workspace_of(name) != workspace:
            raise InvalidArgument(
                "OTHER_WORKSPACE",
                f"{name} is not in the endpoint's workspace.",
                "Use one of its own.",
            )
    if not 0 <= request.replica_count <= autoscale.MAX_REPLICAS:
        raise InvalidArgument(
            "INVALID_REPLICA_COUNT",
            f"{request.replica_count} replicas cannot be had.",
            f"Use 1 to {autoscale.MAX_REPLICAS}.",
        )
    if not 0 <= request.rollout_limit <= rollouts.MAX_LIMIT:
        raise InvalidArgument(
            "INVALID_ROLLOUT_LIMIT",
            f"{request.rollout_limit} rollouts cannot be kept.",
            f"Use 1 to {rollouts.MAX_LIMIT}.",
        )
    _check_variables(request.variables)
    _check_request_settings(request.request_settings)
    if request.HasField("scale_settings"):
        autoscale.check_settings(request.scale_settings)
    if request.HasField("data_collection"):
        collected.check_settings(request.data_collection)


def _check_code(request: pb.CreateDeploymentRequest) -> None:
    """A script with its folder, or neither: then the one model is served as it is."""
    if request.snapshot:
        names.parse("workspaces/*/snapshots/*", request.snapshot)
    if bool(request.snapshot) != bool(request.scoring_script):
        what = "a scoring script" if request.snapshot else "the folder of its scoring script"
        raise InvalidArgument(
            "CODE_INCOMPLETE",
            f"The deployment lacks {what}.",
            "Give both script and folder, or neither to serve a model without a script.",
        )
    if not request.scoring_script and len(request.models) > 1:
        raise InvalidArgument(
            "SCRIPT_MISSING",
            f"{len(request.models)} models cannot be served without a scoring script.",
            "Give a script that says what to do with each, or name one model.",
        )


def _check_request_settings(settings: pb.RequestSettings) -> None:
    for field, limit in _SETTINGS_LIMITS.items():
        value = getattr(settings, field)
        if not 0 <= value <= limit:
            raise InvalidArgument(
                "INVALID_REQUEST_SETTINGS",
                f"{field} cannot be {value:,}.",
                f"Use 1 to {limit:,}, or 0 for the default.",
            )


def _check_variables(variables: Mapping[str, str]) -> None:
    for name, value in variables.items():
        if not _VARIABLE.fullmatch(name) or "\0" in value:
            raise InvalidArgument(
                "INVALID_VARIABLE",
                f"{name[:80]!r} cannot be the name of a variable.",
                "Use letters, digits and '_', not beginning with a digit.",
            )
    # Each of the rollouts that are kept has them.
    if sum(len(name) + len(value) for name, value in variables.items()) > _VARIABLES_LENGTH:
        raise InvalidArgument(
            "VARIABLES_TOO_LARGE",
            f"The variables have over {_VARIABLES_LENGTH:,} characters.",
            "Put long values into a file of the code.",
        )


def check_script(path: str, files: Sequence[File]) -> None:
    """Raises `NotFound` unless the snapshot holds the scoring script."""
    if path not in {file.path for file in files}:
        scripts = ", ".join(file.path for file in files if file.path.endswith(".py"))
        raise NotFound(
            "SCORING_SCRIPT_NOT_FOUND",
            f"There is no {path[:200]!r} in the folder of the deployment.",
            f"Give its path relative to that folder, which holds {scripts[:500] or 'no Python file'}, "
            "or send another folder: `--code .` is the current one.",
        )


def check_without_script(request: pb.CreateDeploymentRequest, model: ModelVersion) -> None:
    """Raises `PlatformError` unless the model can be served by itself."""
    paths = [file.path for file in model.files]
    if any(names.id_of(path) == "MLmodel" for path in paths):
        return
    pickles = [path for path in paths if path.endswith(PICKLES)]
    if len(pickles) != 1:
        raise FailedPrecondition(
            "MODEL_NEEDS_SCRIPT",
            f"{model.name} cannot be served without a scoring script: it has no MLmodel file (MLflow), and "
            f"{len(pickles)} files that end with {', '.join(PICKLES)} (scikit-learn) where one is needed.",
            "Give a scoring script, or register a model of MLflow or scikit-learn.",
        )


def request_of(deployment: pb.Deployment) -> pb.CreateDeploymentRequest:
    """The request that would make what the deployment is to be: what serves, or else was tried last."""
    base = rollouts.find(deployment, deployment.rollout) or deployment.rollouts[-1]
    workload = base.workload
    return pb.CreateDeploymentRequest(
        parent=names.parent_of(deployment.name),
        deployment_id=names.id_of(deployment.name),
        models=[item.resource for item in workload.inputs],
        environment=workload.environment,
        snapshot=workload.snapshot,
        scoring_script=workload.command,
        compute=workload.compute,
        replica_count=deployment.replica_count,
        variables=workload.variables,
        request_settings=base.request_settings if base.HasField("request_settings") else None,
        sample=base.sample if base.sample_chosen else "",
        rollout_limit=deployment.rollout_limit,
        data_collection=workload.data_collection if workload.HasField("data_collection") else None,
        batch_settings=workload.batch_settings if workload.HasField("batch_settings") else None,
    )


def change(deployment: pb.Deployment, request: pb.UpdateDeploymentRequest) -> pb.CreateDeploymentRequest:
    """The request that would make what an update asks for; raises `InvalidArgument` for an unknown field."""
    wanted = request_of(deployment)
    if not request.update_mask.paths:
        raise InvalidArgument("NOTHING_TO_UPDATE", "The update changes nothing.", "Say what is to change.")
    for path in request.update_mask.paths:
        if path not in UPDATABLE:
            raise InvalidArgument(
                "INVALID_UPDATE_MASK",
                f"{path[:80]!r} cannot be updated.",
                f"Fields: {', '.join(sorted(UPDATABLE))}.",
            )
        wanted.ClearField(path)  # type: ignore[arg-type]  # checked above
        asked = pb.CreateDeploymentRequest()
        asked.CopyFrom(_only(request, path))
        wanted.MergeFrom(asked)
    if "replica_count" in request.update_mask.paths and request.replica_count < 1:
        raise InvalidArgument(
            "INVALID_REPLICA_COUNT",
            f"{request.replica_count} replicas cannot be asked for.",
            f"Use 1 to {autoscale.MAX_REPLICAS}.",
        )
    return wanted


def is_same_request(one: pb.CreateDeploymentRequest, other: pb.CreateDeploymentRequest) -> bool:
    """Whether both ask the same of replicas and doors; how many replicas there are, the load may change."""
    copy = pb.CreateDeploymentRequest()
    copy.CopyFrom(one)
    copy.replica_count = other.replica_count
    return copy == other


def _only(request: pb.UpdateDeploymentRequest, path: str) -> pb.CreateDeploymentRequest:
    """The same field of another message."""
    value = getattr(request, path)
    if path == "data_collection" and not request.HasField("data_collection"):
        # Absent means something: nothing is collected any more.
        return pb.CreateDeploymentRequest()
    if path == "batch_settings":
        # Absent means the defaults.
        return pb.CreateDeploymentRequest(batch_settings=request.batch_settings)
    return pb.CreateDeploymentRequest(**{path: value})
