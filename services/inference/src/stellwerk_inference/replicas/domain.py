"""The life of a replica: it follows its allocation, and is ready once its scoring server says so.

Each rule changes the replica and returns the fact to record, or None when there is
nothing to do, so that anything may be handled twice.
"""

import secrets

from stellwerk_inference.states import (
    CREATING,
    DELETED,
    DELETING,
    FAILED,
    NOT_RESPONDING,
    READY_CODE,
    SUCCEEDED,
    State,
)
from stellwerk_platform import names
from stellwerk_platform.documents import now
from stellwerk_platform.journal import Fact
from stellwerk_protos.common.v1.common_pb2 import Reason
from stellwerk_protos.compute.v1 import computes_pb2 as compute
from stellwerk_protos.inference.v1 import endpoints_pb2 as pb

PATTERN = "workspaces/*/endpoints/*/deployments/*/replicas/*"
# States in which a replica serves or may still come to serve.
LIVE = frozenset({CREATING, SUCCEEDED, NOT_RESPONDING})
# Nothing follows.
ENDED = frozenset({FAILED, DELETED})
NOT_READY_CODE, SAMPLE_FAILED_CODE = "SCORER_NOT_READY", "SAMPLE_FAILED"
# Where it is reached, and what it shows there.
_ADDRESSES = ("http_address", "grpc_address", "certificate")
_PLACING = {
    compute.ALLOCATION_STATE_QUEUED: "queued",
    compute.ALLOCATION_STATE_ASSIGNED: "assigned",
    compute.ALLOCATION_STATE_PREPARING: "preparing",
}
_ALLOCATION_ENDED = frozenset(
    {
        compute.ALLOCATION_STATE_SUCCEEDED,
        compute.ALLOCATION_STATE_FAILED,
        compute.ALLOCATION_STATE_CANCELED,
    }
)


def is_replica(name: str) -> bool:
    """Whether an allocation's owner is a replica."""
    return "/replicas/" in name


def new(deployment: pb.Deployment, rollout: pb.Rollout) -> pb.Replica:
    """A replica of a rollout with an id of its own; compute places it when it reads of it."""
    return pb.Replica(
        name=f"{deployment.name}/replicas/{secrets.token_hex(4)}",
        state=CREATING,
        reason=Reason(code="WAITING_FOR_COMPUTE", message="Waits to be placed."),
        workload=rollout.workload,
        rollout=rollout.number,
    )


def follow(replica: pb.Replica, allocation: compute.Allocation) -> Fact | None:
    """Moves the replica to where its allocation is."""
    if allocation.revision <= replica.allocation_revision or replica.state in ENDED:
        return None
    replica.allocation = allocation.name
    replica.allocation_revision = allocation.revision
    if replica.state == DELETING:
        return _followed_to_the_end(replica, allocation)
    if allocation.state in _PLACING:
        _set_addresses(replica, compute.Allocation())
        return _move(replica, CREATING, _PLACING[allocation.state], allocation.reason)
    if allocation.state == compute.ALLOCATION_STATE_RUNNING:
        return _start(replica, allocation)
    if allocation.state == compute.ALLOCATION_STATE_NOT_RESPONDING:
        return _move(replica, NOT_RESPONDING, "not_responding", allocation.reason)
    if allocation.state == compute.ALLOCATION_STATE_FINALIZING:
        return _move(replica, NOT_RESPONDING, "not_responding", _server_ended())
    if allocation.state == compute.ALLOCATION_STATE_SUCCEEDED:
        return _move(replica, FAILED, "failed", _server_ended())
    if allocation.state in _ALLOCATION_ENDED:
        return _move(replica, FAILED, "failed", allocation.reason)
    return None


def answered(replica: pb.Replica, allocation_revision: int, note: str = "") -> Fact | None:
    """The scoring server of this allocation, as it was then, is ready; `note` tells of the sample request."""
    if replica.state != CREATING or replica.allocation_revision != allocation_revision:
        return None
    if not replica.http_address:
        return None
    reason = Reason(code=READY_CODE, message=note or "The scoring server is ready.")
    if not replica.HasField("ready_time"):
        replica.ready_time.CopyFrom(now())
    return _move(replica, SUCCEEDED, "ready", reason)


def refuse(replica: pb.Replica, allocation_revision: int, reason: Reason) -> Fact | None:
    """The sample request was not answered as it should be; compute is told to stop it."""
    if replica.state != CREATING or replica.allocation_revision != allocation_revision:
        return None
    return _move(replica, DELETING, "deleting", reason)


def give_up(replica: pb.Replica, allocation_revision: int, seconds: float) -> Fact | None:
    """The scoring server was not ready in time; compute is told to stop it."""
    if replica.state != CREATING or replica.allocation_revision != allocation_revision:
        return None
    reason = Reason(
        code=NOT_READY_CODE,
        message=f"The scoring server was not ready within {seconds:.0f} s.",
        cure="See whether init() of the scoring script hangs or needs longer.",
    )
    return _move(replica, DELETING, "deleting", reason)


def stop(replica: pb.Replica, code: str, message: str) -> Fact | None:
    """Asks compute to stop it."""
    if replica.state not in LIVE:
        return None
    return _move(replica, DELETING, "deleting", Reason(code=code, message=message))


def has_failed(replica: pb.Replica) -> bool:
    """Whether it ended, or is being ended, for another reason than that nobody wants it any more."""
    return replica.state == FAILED or replica.reason.code in (NOT_READY_CODE, SAMPLE_FAILED_CODE)


def _start(replica: pb.Replica, allocation: compute.Allocation) -> Fact | None:
    same = all(getattr(replica, name) == getattr(allocation, name) for name in _ADDRESSES)
    if replica.state == SUCCEEDED and same:
        return None
    _set_addresses(replica, allocation)
    reason = Reason(code="SCORER_STARTING", message="The scoring server starts.")
    return _move(replica, CREATING, "starting", reason)


def _followed_to_the_end(replica: pb.Replica, allocation: compute.Allocation) -> Fact | None:
    if allocation.state not in _ALLOCATION_ENDED:
        return None
    reason = Reason()
    reason.CopyFrom(replica.reason)
    return _move(replica, DELETED, "deleted", reason)


def _server_ended() -> Reason:
    return Reason(
        code="SCORER_ENDED",
        message="The scoring server ended by itself.",
        cure="See `stellwerk deployment logs`; the scoring script must not end its process.",
    )


def _set_addresses(replica: pb.Replica, allocation: compute.Allocation) -> None:
    for name in _ADDRESSES:
        setattr(replica, name, getattr(allocation, name))


def _move(replica: pb.Replica, state: State.ValueType, verb: str, reason: Reason) -> Fact:
    replica.state = state
    replica.reason.CopyFrom(reason)
    return Fact(verb, reason.code, reason.message)


def deployment_of(replica_name: str) -> str:
    """The name of the deployment that it serves."""
    return names.parent_of(replica_name)
