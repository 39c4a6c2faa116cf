"""The life of an allocation: pure rules on the proto message.

Each rule changes the allocation and returns the fact to record, or None when there
is nothing to do, so that anything may be handled twice.
"""

import hashlib
import math
from collections.abc import Mapping

from stellwerk_platform import names
from stellwerk_platform.documents import now
from stellwerk_platform.journal import Fact
from stellwerk_protos.common.v1 import common_pb2
from stellwerk_protos.compute.v1 import agents_pb2, computes_pb2, workloads_pb2

PATTERN = "workspaces/*/allocations/*"
State = computes_pb2.AllocationState
QUEUED = computes_pb2.ALLOCATION_STATE_QUEUED
ASSIGNED = computes_pb2.ALLOCATION_STATE_ASSIGNED
PREPARING = computes_pb2.ALLOCATION_STATE_PREPARING
RUNNING = computes_pb2.ALLOCATION_STATE_RUNNING
FINALIZING = computes_pb2.ALLOCATION_STATE_FINALIZING
SUCCEEDED = computes_pb2.ALLOCATION_STATE_SUCCEEDED
FAILED = computes_pb2.ALLOCATION_STATE_FAILED
CANCELED = computes_pb2.ALLOCATION_STATE_CANCELED
NOT_RESPONDING = computes_pb2.ALLOCATION_STATE_NOT_RESPONDING
TERMINAL = frozenset({SUCCEEDED, FAILED, CANCELED})
VERBS: Mapping[int, str] = {
    QUEUED: "queued",
    ASSIGNED: "assigned",
    PREPARING: "preparing",
    RUNNING: "running",
    FINALIZING: "finalizing",
    SUCCEEDED: "succeeded",
    FAILED: "failed",
    CANCELED: "canceled",
    NOT_RESPONDING: "not_responding",
}
_REPORTED = frozenset({PREPARING, RUNNING, FINALIZING, *TERMINAL})
_READABLE_LENGTH = 40
# 30,000 years.
_MOST_CPU_SECONDS = 1e12
_MOST_CERTIFICATE_CHARACTERS = 8_192


def name_for(owner: str) -> str:
    """The one allocation of a run or replica: the same name however often it is asked for."""
    digest = hashlib.sha256(owner.encode()).hexdigest()[:12]
    readable = names.id_of(owner)[:_READABLE_LENGTH]
    return f"workspaces/{names.workspace_of(owner)}/allocations/{readable}-{digest}"


def new(owner: str, workload: workloads_pb2.Workload) -> tuple[computes_pb2.Allocation, Fact]:
    """An allocation that waits to be placed."""
    allocation = computes_pb2.Allocation(name=name_for(owner), owner=owner, workload=workload)
    return allocation, _move(
        allocation, QUEUED, common_pb2.Reason(code="WAITING_FOR_PLACEMENT", message="A node is being chosen.")
    )


def wait(allocation: computes_pb2.Allocation, reason: common_pb2.Reason) -> Fact | None:
    """Says what a queued allocation waits for."""
    if allocation.state != QUEUED or allocation.reason.code == reason.code:
        return None
    return _move(allocation, QUEUED, reason)


def assign(allocation: computes_pb2.Allocation, node: str) -> Fact | None:
    """Places a queued allocation on a node."""
    if allocation.state != QUEUED:
        return None
    allocation.node = node
    return _move(allocation, ASSIGNED, common_pb2.Reason(code="NODE_CHOSEN", message=f"Placed on {node}."))


def fail(allocation: computes_pb2.Allocation, reason: common_pb2.Reason) -> Fact | None:
    """Ends an allocation that cannot go on."""
    return None if allocation.state in TERMINAL else _move(allocation, FAILED, reason)


def cancel(allocation: computes_pb2.Allocation, reason: common_pb2.Reason, actor: str) -> Fact | None:
    """Ends a queued allocation at once; marks one that lives on a node, which has to stop it."""
    if allocation.state in TERMINAL or allocation.cancel_requested:
        return None
    allocation.cancel_requested = True
    if allocation.state == QUEUED:
        return _move(allocation, CANCELED, reason, actor)
    return Fact("cancel_requested", reason.code, reason.message, actor)


def report(allocation: computes_pb2.Allocation, node: str, said: agents_pb2.Report) -> Fact | None:
    """What the node says; ignored after the end, from another node, and when it would lead backwards."""
    state = allocation.state
    if state in TERMINAL or allocation.node != node or said.state not in _REPORTED:
        return None
    if state != NOT_RESPONDING and said.state not in TERMINAL and said.state < state:
        return None
    del allocation.phases[:]
    allocation.phases.extend(said.phases)
    if said.HasField("exit_code"):
        allocation.exit_code = said.exit_code
    allocation.http_address, allocation.grpc_address = said.http_address, said.grpc_address
    # What is longer is none, and nobody will trust the rest of it.
    allocation.certificate = said.certificate[:_MOST_CERTIFICATE_CHARACTERS]
    return _move(allocation, said.state, said.reason)


def cpu_seconds(said: float, known: float) -> float:
    """The greater one; what can be no number of seconds changes nothing."""
    return max(said, known) if math.isfinite(said) and said < _MOST_CPU_SECONDS else known


def silence(allocation: computes_pb2.Allocation) -> Fact | None:
    """The node's lease ran out."""
    if allocation.state in TERMINAL or allocation.state in (QUEUED, NOT_RESPONDING):
        return None
    reason = common_pb2.Reason(
        code="LEASE_EXPIRED",
        message=f"{allocation.node} has not been heard of for one lease.",
        cure="The state returns when the agent does; see whether the machine still runs.",
    )
    return _move(allocation, NOT_RESPONDING, reason)


def abandon(allocation: computes_pb2.Allocation) -> Fact | None:
    """Ends one that was canceled on a node that stays silent; should it return, it is told to stop."""
    if allocation.state != NOT_RESPONDING or not allocation.cancel_requested:
        return None
    reason = common_pb2.Reason(
        code="NODE_SILENT",
        message=f"Canceled without {allocation.node}, which has not been heard of since.",
        cure="See whether the machine still runs: the command stops there when the agent returns.",
    )
    return _move(allocation, CANCELED, reason)


def restore(allocation: computes_pb2.Allocation, earlier: State.ValueType) -> Fact | None:
    """The node is back and still holds it: as it was, until the node says more."""
    if allocation.state != NOT_RESPONDING:
        return None
    return _move(
        allocation, earlier, common_pb2.Reason(code="AGENT_RETURNED", message=f"{allocation.node} is back.")
    )


def lose(allocation: computes_pb2.Allocation, earlier: State.ValueType) -> Fact | None:
    """The node is back without it: failed if it had begun there, else queued again.

    One that was assigned and is not held yet may still be on its way.
    """
    if allocation.state in TERMINAL or allocation.state in (QUEUED, ASSIGNED):
        return None
    node = allocation.node
    if allocation.state == NOT_RESPONDING and earlier == ASSIGNED:
        allocation.node = ""
        if allocation.cancel_requested:
            return _move(
                allocation, CANCELED, common_pb2.Reason(code="CANCEL_REQUESTED", message="It never started.")
            )
        return _move(
            allocation,
            QUEUED,
            common_pb2.Reason(code="NODE_CHANGED", message=f"{node} came back without having started it."),
        )
    reason = common_pb2.Reason(
        code="ALLOCATION_LOST",
        message=f"{node} came back and does not hold it any more.",
        cure="Submit it again; the node's folder was removed or its agent moved.",
    )
    return _move(allocation, FAILED, reason)


def _move(
    allocation: computes_pb2.Allocation,
    state: State.ValueType,
    reason: common_pb2.Reason,
    actor: str = "",
) -> Fact:
    allocation.state = state
    allocation.reason.CopyFrom(reason)
    if state == RUNNING and not allocation.HasField("start_time"):
        allocation.start_time.CopyFrom(now())
    if state in TERMINAL:
        allocation.end_time.CopyFrom(now())
    return Fact(VERBS[state], reason.code, reason.message, actor)
