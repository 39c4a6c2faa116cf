"""The life of a deployment: what its replicas make of it, and when a dead one is replaced.

Each rule changes the deployment and returns the fact to record, or None when there is
nothing to do.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from google.protobuf.duration_pb2 import Duration

from stellwerk_inference.collected import domain as collected
from stellwerk_inference.replicas import domain as replicas_domain
from stellwerk_inference.states import (
    CREATING,
    DELETED,
    DELETING,
    FAILED,
    LEAVING,
    NOT_RESPONDING,
    READY_CODE,
    SUCCEEDED,
    State,
)
from stellwerk_platform import names
from stellwerk_platform.errors import FailedPrecondition, InvalidArgument, NotFound
from stellwerk_platform.journal import Fact
from stellwerk_protos.common.v1.common_pb2 import File, Reason
from stellwerk_protos.compute.v1 import workloads_pb2
from stellwerk_protos.inference.v1 import endpoints_pb2 as pb

PATTERN = "workspaces/*/endpoints/*/deployments/*"
MAX_REPLICAS = 100
# The last states of a watch.
SETTLED = frozenset({SUCCEEDED, FAILED, DELETED})
# A little more than the scoring server takes to finish what it has accepted.
_GRACE_SECONDS = 25
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Replacements are bounded: more failures than this, per wanted replica and window, end the deployment.
_FAILURES_PER_REPLICA = 5
_FAILURE_WINDOW = timedelta(minutes=10)
_LONGEST_BACKOFF_SECONDS = 30.0
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
    names.parse("workspaces/*/snapshots/*", request.snapshot)
    names.parse("workspaces/*/computes/*", request.compute)
    if not request.models:
        raise InvalidArgument("MODEL_MISSING", "The deployment names no model.", "Name at least one version.")
    for model in request.models:
        names.parse("workspaces/*/models/*/versions/*", model)
    for name in (request.environment, request.snapshot, request.compute, *request.models):
        if names.workspace_of(name) != workspace:
            raise InvalidArgument(
                "OTHER_WORKSPACE",
                f"{name} is not in the endpoint's workspace.",
                "Use one of its own.",
            )
    if not 0 <= request.replica_count <= MAX_REPLICAS:
        raise InvalidArgument(
            "INVALID_REPLICA_COUNT",
            f"{request.replica_count} replicas cannot be had.",
            f"Use 1 to {MAX_REPLICAS}.",
        )
    _check_variables(request.variables)
    _check_request_settings(request.request_settings)
    if request.HasField("data_collection"):
        collected.check_settings(request.data_collection)


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


def check_script(path: str, files: Sequence[File]) -> None:
    """Raises `NotFound` unless the snapshot holds the scoring script."""
    if path not in {file.path for file in files}:
        scripts = ", ".join(file.path for file in files if file.path.endswith(".py"))
        raise NotFound(
            "SCORING_SCRIPT_NOT_FOUND",
            f"There is no {path[:200]!r} in the folder of the deployment.",
            f"Give the script's path relative to that folder; it holds {scripts[:500] or 'no Python file'}.",
        )


def new(
    request: pb.CreateDeploymentRequest, models: Sequence[str], environment: str, creator: str
) -> pb.Deployment:
    """The deployment that a request asks for; `models` and `environment` with the numbers of versions."""
    inputs = [
        workloads_pb2.Input(name=names.id_of(names.parent_of(model)), resource=model) for model in models
    ]
    if len({entry.name for entry in inputs}) != len(inputs):
        raise InvalidArgument(
            "DUPLICATE_MODEL", "A model is named with two versions.", "Name each model once, or rename one."
        )
    deployment = pb.Deployment(
        name=f"{request.parent}/deployments/{request.deployment_id}",
        creator=creator,
        tags=request.tags,
        state=CREATING,
        reason=Reason(code="WAITING_FOR_COMPUTE", message="Waits for its replicas."),
        replica_count=request.replica_count or 1,
        request_settings=request.request_settings if request.HasField("request_settings") else None,
    )
    deployment.workload.CopyFrom(
        workloads_pb2.Workload(
            kind=workloads_pb2.WORKLOAD_KIND_REPLICA,
            compute=request.compute,
            snapshot=request.snapshot,
            environment=environment,
            command=request.scoring_script,
            variables=request.variables,
            inputs=inputs,
            grace=Duration(seconds=_GRACE_SECONDS),
            data_collection=request.data_collection if request.HasField("data_collection") else None,
        )
    )
    return deployment


def observe(deployment: pb.Deployment, replicas: Sequence[pb.Replica]) -> Fact | None:
    """What the replicas make of the deployment."""
    ready = sum(replica.state == SUCCEEDED for replica in replicas)
    changed = deployment.ready_replica_count != ready
    deployment.ready_replica_count = ready
    if deployment.state == CREATING:
        return _observe_creation(deployment, replicas)
    if deployment.state == DELETING and all(r.state in replicas_domain.ENDED for r in replicas):
        return _move(deployment, DELETED, "deleted", Reason(code="REPLICAS_STOPPED", message="Nothing runs."))
    if not changed:
        return None
    if deployment.state == SUCCEEDED:
        return _move(deployment, SUCCEEDED, "replicas_changed", _readiness(deployment))
    return Fact("replicas_changed", deployment.reason.code, _readiness(deployment).message)


def _observe_creation(deployment: pb.Deployment, replicas: Sequence[pb.Replica]) -> Fact | None:
    for replica in replicas:
        if replicas_domain.has_failed(replica):
            return _move(deployment, FAILED, "failed", replica.reason)
    if deployment.ready_replica_count >= deployment.replica_count:
        return _move(deployment, SUCCEEDED, "succeeded", _readiness(deployment))
    waiting = next((r for r in replicas if r.state in (CREATING, NOT_RESPONDING)), None)
    if waiting is None or waiting.reason == deployment.reason:
        return None
    return _move(deployment, CREATING, "progressed", waiting.reason)


def _readiness(deployment: pb.Deployment) -> Reason:
    ready, wanted = deployment.ready_replica_count, deployment.replica_count
    code = READY_CODE if ready >= wanted else "REPLICA_MISSING"
    return Reason(code=code, message=f"{ready} of {wanted} replicas answer.")


def missing_replicas(deployment: pb.Deployment, replicas: Sequence[pb.Replica]) -> int:
    """How many replicas a deployment that was ready lacks."""
    if deployment.state != SUCCEEDED:
        return 0
    live = sum(replica.state in replicas_domain.LIVE for replica in replicas)
    return max(deployment.replica_count - live, 0)


def next_replacement(replicas: Sequence[pb.Replica], now: datetime) -> datetime:
    """When the next replacement may start: at once after one failure, then ever later."""
    failures = _recent_failures(replicas, now)
    if len(failures) <= 1:
        return now
    backoff = min(2.0 ** (len(failures) - 2), _LONGEST_BACKOFF_SECONDS)
    return max(failures) + timedelta(seconds=backoff)


def exhaust(deployment: pb.Deployment, replicas: Sequence[pb.Replica], now: datetime) -> Fact | None:
    """Ends a deployment whose replicas keep failing."""
    failures = len(_recent_failures(replicas, now))
    if deployment.state != SUCCEEDED or failures <= _FAILURES_PER_REPLICA * deployment.replica_count:
        return None
    last = max(
        (r for r in replicas if replicas_domain.has_failed(r)), key=lambda r: r.update_time.ToDatetime()
    )
    reason = Reason(
        code="REPLICAS_KEEP_FAILING",
        message=f"{failures} replicas failed within 10 minutes; the last one: {last.reason.message}",
        cure=last.reason.cure or "See `stellwerk logs agent`, and make a new deployment.",
    )
    return _move(deployment, FAILED, "failed", reason)


def _recent_failures(replicas: Sequence[pb.Replica], now: datetime) -> list[datetime]:
    times = (r.update_time.ToDatetime(UTC) for r in replicas if replicas_domain.has_failed(r))
    return [time for time in times if now - time < _FAILURE_WINDOW]


def delete(deployment: pb.Deployment, percent: int) -> Fact | None:
    """Asks for the end; raises `FailedPrecondition` while the deployment takes traffic."""
    if deployment.state in LEAVING:
        return None
    if percent:
        raise FailedPrecondition(
            "DEPLOYMENT_TAKES_TRAFFIC",
            f"{names.id_of(deployment.name)} takes {percent} % of the traffic.",
            "Give its share to another deployment first: `stellwerk endpoint traffic`.",
        )
    reason = Reason(code="DELETE_REQUESTED", message="Its replicas are being stopped.")
    return _move(deployment, DELETING, "deleting", reason)


def _move(deployment: pb.Deployment, state: State.ValueType, verb: str, reason: Reason) -> Fact:
    deployment.state = state
    deployment.reason.CopyFrom(reason)
    return Fact(verb, reason.code, reason.message)
