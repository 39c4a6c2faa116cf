"""The life of a deployment: what its replicas make of it, and when a dead one is replaced.

Each rule changes the deployment and returns the fact to record, or None when there is
nothing to do.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from stellwerk_inference.autoscale import domain as autoscale
from stellwerk_inference.deployments import rollouts
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
from stellwerk_platform.errors import FailedPrecondition
from stellwerk_platform.journal import Fact
from stellwerk_protos.common.v1.common_pb2 import File, Reason
from stellwerk_protos.inference.v1 import endpoints_pb2 as pb

# The last states of a watch.
SETTLED = frozenset({SUCCEEDED, FAILED, DELETED})
# Replacements are bounded: more failures than this, per wanted replica and window, end the deployment.
_FAILURES_PER_REPLICA = 5
_FAILURE_WINDOW = timedelta(minutes=10)
_LONGEST_BACKOFF_SECONDS = 30.0


def new(
    request: pb.CreateDeploymentRequest,
    models: Sequence[str],
    environment: str,
    files: Sequence[File],
    creator: str,
) -> pb.Deployment:
    """The deployment that a request asks for, with its first rollout.

    `models` and `environment` with the numbers of versions; `files` of the snapshot.
    """
    deployment = pb.Deployment(
        name=f"{request.parent}/deployments/{request.deployment_id}",
        creator=creator,
        tags=request.tags,
        state=CREATING,
        reason=Reason(code="WAITING_FOR_COMPUTE", message="Waits for its replicas."),
        replica_count=request.replica_count or 1,
        rollout_limit=request.rollout_limit or rollouts.DEFAULT_LIMIT,
    )
    if request.HasField("scale_settings"):
        deployment.scale_settings.CopyFrom(request.scale_settings)
        deployment.replica_count = autoscale.first_count(request.scale_settings, deployment.replica_count)
    rollout = rollout_of(request, models, environment, files, creator)
    rollouts.begin(deployment, rollout)
    rollouts.show(deployment, rollout)
    return deployment


def rollout_of(
    request: pb.CreateDeploymentRequest,
    models: Sequence[str],
    environment: str,
    files: Sequence[File],
    creator: str,
) -> pb.Rollout:
    """What a request asks of the replicas and the doors; parameters as for `new`."""
    sample = rollouts.sample_of(request.sample, request.scoring_script, files)
    return pb.Rollout(
        creator=creator,
        workload=rollouts.workload(request, models, environment),
        request_settings=request.request_settings if request.HasField("request_settings") else None,
        sample=sample.path if sample else "",
        sample_sha256=sample.sha256 if sample else "",
        sample_chosen=bool(request.sample),
    )


def update(
    deployment: pb.Deployment, rollout: pb.Rollout, wanted: pb.CreateDeploymentRequest, fields: Sequence[str]
) -> Fact | None:
    """Makes a rollout the target, unless what serves does the same; counts and settings change at once."""
    check_open(deployment)
    before = deployment.SerializeToString(deterministic=True)
    for field in ("replica_count", "rollout_limit"):
        if field in fields:
            setattr(deployment, field, getattr(wanted, field))
    serving = rollouts.find(deployment, deployment.rollout)
    goal = rollouts.target(deployment) or serving
    serves = goal is not serving or deployment.state == SUCCEEDED
    if goal is not None and serves and _same(goal, rollout):
        goal.ClearField("request_settings")
        if rollout.HasField("request_settings"):
            goal.request_settings.CopyFrom(rollout.request_settings)
        goal.sample, goal.sample_sha256 = rollout.sample, rollout.sample_sha256
        goal.sample_chosen = rollout.sample_chosen
        if goal is serving:
            rollouts.show(deployment, goal)
    elif set(fields) - {"replica_count", "rollout_limit"}:
        rollouts.begin(deployment, rollout)
        return Fact("rollout_started", "REQUESTED", f"Rollout {rollout.number} starts.")
    rollouts.trim(deployment)
    if deployment.SerializeToString(deterministic=True) == before:
        return None
    return Fact("updated", "REQUESTED", f"Changed: {', '.join(sorted(fields))}.")


def _same(one: pb.Rollout, other: pb.Rollout) -> bool:
    """Whether replicas of the one do what those of the other would."""
    return one.workload == other.workload


def roll_back(deployment: pb.Deployment, number: int, creator: str) -> Fact | None:
    """Goes back to what an earlier rollout was; 0 is the one before. Raises `NotFound` and more."""
    check_open(deployment)
    earlier = rollouts.to_go_back_to(deployment, number)
    serving = rollouts.find(deployment, deployment.rollout)
    goal = rollouts.target(deployment)
    if goal is not None and _same(goal, earlier):
        return None
    if serving is not None and _same(serving, earlier) and deployment.state == SUCCEEDED:
        if goal is None:
            return None
        reason = Reason(code="ROLLED_BACK", message=f"Rollout {serving.number} is to stay.")
        rollouts.fail_target(deployment, reason)
        return Fact("rollout_failed", reason.code, reason.message)
    copy = pb.Rollout()
    copy.CopyFrom(earlier)
    copy.creator = creator
    rollouts.begin(deployment, copy)
    text = f"Rollout {copy.number} goes back to rollout {earlier.number}."
    return Fact("rollout_started", "ROLLED_BACK", text)


def check_open(deployment: pb.Deployment) -> None:
    """Raises `FailedPrecondition` for a deployment that is deleted or being deleted."""
    if deployment.state in LEAVING:
        raise FailedPrecondition(
            "DEPLOYMENT_DELETED",
            f"{names.id_of(deployment.name)} is deleted.",
            "Create it again once it is gone.",
        )


def is_settled(deployment: pb.Deployment) -> bool:
    """Whether it stays as it is until somebody or something changes it."""
    return deployment.state in SETTLED and not deployment.target_rollout


def observe(deployment: pb.Deployment, replicas: Sequence[pb.Replica]) -> Fact | None:
    """What the replicas make of the deployment."""
    moved = None
    if deployment.target_rollout and deployment.state not in LEAVING:
        moved = _observe_target(deployment, of_rollout(replicas, deployment.target_rollout))
    serving = of_rollout(replicas, deployment.rollout)
    ready = sum(replica.state == SUCCEEDED for replica in serving)
    changed = deployment.ready_replica_count != ready
    deployment.ready_replica_count = ready
    if deployment.state == DELETING and all(r.state in replicas_domain.ENDED for r in replicas):
        return _move(deployment, DELETED, "deleted", Reason(code="REPLICAS_STOPPED", message="Nothing runs."))
    if moved is not None and moved.verb == "succeeded":
        return _move(deployment, SUCCEEDED, "succeeded", _readiness(deployment))
    if moved is not None or not changed:
        return moved
    if deployment.state == SUCCEEDED:
        return _move(deployment, SUCCEEDED, "replicas_changed", _readiness(deployment))
    return Fact("replicas_changed", deployment.reason.code, _readiness(deployment).message)


def of_rollout(replicas: Sequence[pb.Replica], number: int) -> list[pb.Replica]:
    """Those of the replicas that are of this rollout."""
    return [replica for replica in replicas if replica.rollout == number]


def target_replicas(deployment: pb.Deployment) -> int:
    """How many replicas of a rollout must be ready before it serves: one also where none is wanted now."""
    return max(deployment.replica_count, 1)


def _observe_target(deployment: pb.Deployment, replicas: Sequence[pb.Replica]) -> Fact | None:
    """Moves the rollout that goes on, by its replicas."""
    rollout = rollouts.target(deployment)
    assert rollout is not None
    failed = next((r for r in replicas if replicas_domain.has_failed(r)), None)
    if failed is not None:
        return _fail_target(deployment, failed.reason)
    ready = [replica for replica in replicas if replica.state == SUCCEEDED]
    if len(ready) >= target_replicas(deployment):
        rollouts.serve_target(deployment, ready[0].reason)
        return Fact("succeeded", READY_CODE)
    waiting = next((r for r in replicas if r.state in (CREATING, NOT_RESPONDING)), None)
    if waiting is None or waiting.reason == rollout.reason:
        return None
    rollout.reason.CopyFrom(waiting.reason)
    if deployment.state == CREATING:
        return _move(deployment, CREATING, "progressed", waiting.reason)
    return Fact("progressed", waiting.reason.code, f"Rollout {rollout.number}: {waiting.reason.message}")


def _fail_target(deployment: pb.Deployment, reason: Reason) -> Fact:
    """The rollout has failed; what serves goes on serving."""
    number = deployment.target_rollout
    rollouts.fail_target(deployment, reason)
    if not deployment.rollout:
        return _move(deployment, FAILED, "failed", reason)
    text = f"Rollout {number} failed, rollout {deployment.rollout} is unchanged: {reason.message}"
    return Fact("rollout_failed", reason.code, text)


def _readiness(deployment: pb.Deployment) -> Reason:
    ready, wanted = deployment.ready_replica_count, deployment.replica_count
    if not wanted:
        wakes = "job" if deployment.workload.HasField("batch_settings") else "request"
        return Reason(code="ASLEEP", message=f"No replica runs; the first {wakes} starts one.")
    code = READY_CODE if ready >= wanted else "REPLICA_MISSING"
    rollout = rollouts.find(deployment, deployment.rollout)
    note = f" {rollout.reason.message}" if rollout is not None and rollout.reason.message else ""
    return Reason(code=code, message=f"{ready} of {wanted} replicas answer.{note}")


def missing_replicas(deployment: pb.Deployment, replicas: Sequence[pb.Replica]) -> int:
    """How many replicas a deployment that was ready lacks."""
    if deployment.state != SUCCEEDED:
        return 0
    serving = of_rollout(replicas, deployment.rollout)
    live = sum(replica.state in replicas_domain.LIVE for replica in serving)
    return max(deployment.replica_count - live, 0)


def surplus_replicas(deployment: pb.Deployment, replicas: Sequence[pb.Replica]) -> list[pb.Replica]:
    """The replicas that nobody wants any more: of rollouts that have been, and beyond the wanted number."""
    live = [replica for replica in replicas if replica.state in replicas_domain.LIVE]
    kept: list[pb.Replica] = []
    for number, wanted in (
        (deployment.rollout, deployment.replica_count),
        (deployment.target_rollout, target_replicas(deployment)),
    ):
        found = of_rollout(live, number) if number else []
        # Those that answer stay, and of them the oldest.
        found.sort(key=lambda r: (r.state != SUCCEEDED, r.create_time.ToDatetime(), r.name))
        kept += found[:wanted]
    keep = {replica.name for replica in kept}
    return [replica for replica in live if replica.name not in keep]


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
        cure=last.reason.cure or "See its log: `stellwerk deployment logs`; then update the deployment.",
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
    rollouts.fail_target(deployment, reason)
    return _move(deployment, DELETING, "deleting", reason)


def _move(deployment: pb.Deployment, state: State.ValueType, verb: str, reason: Reason) -> Fact:
    deployment.state = state
    deployment.reason.CopyFrom(reason)
    return Fact(verb, reason.code, reason.message)
