"""The status machine of a run: which state may follow which, and how a run follows its allocation.

Pure functions on the proto message; nothing here knows a store or the bus.
"""

from google.protobuf.timestamp_pb2 import Timestamp

from stellwerk_platform.errors import FailedPrecondition
from stellwerk_platform.journal import Fact
from stellwerk_protos.common.v1.common_pb2 import Reason
from stellwerk_protos.compute.v1 import computes_pb2 as compute
from stellwerk_protos.runs.v1 import runs_pb2 as pb
from stellwerk_protos.runs.v1.runs_pb2 import Run, RunState

_NOT_STARTED = pb.RUN_STATE_NOT_STARTED
_STARTING = pb.RUN_STATE_STARTING
_PREPARING = pb.RUN_STATE_PREPARING
_QUEUED = pb.RUN_STATE_QUEUED
_RUNNING = pb.RUN_STATE_RUNNING
_FINALIZING = pb.RUN_STATE_FINALIZING
_COMPLETED = pb.RUN_STATE_COMPLETED
_FAILED = pb.RUN_STATE_FAILED
_CANCEL_REQUESTED = pb.RUN_STATE_CANCEL_REQUESTED
_CANCELED = pb.RUN_STATE_CANCELED
_NOT_RESPONDING = pb.RUN_STATE_NOT_RESPONDING
_PAUSED = pb.RUN_STATE_PAUSED

TERMINAL: frozenset[int] = frozenset({_COMPLETED, _FAILED, _CANCELED})
# A child is created while its parent can still do something: nothing else, once a run is being
# cancelled, could say that all its descendants are known.
PARENTS: frozenset[int] = frozenset(
    {_NOT_STARTED, _STARTING, _PREPARING, _QUEUED, _RUNNING, _NOT_RESPONDING, _PAUSED}
)
# While outputs are collected a cancel ends that.
CANCELLABLE: frozenset[int] = PARENTS | {_FINALIZING}
_LATER = frozenset({_RUNNING, _FINALIZING, _NOT_RESPONDING, _PAUSED, _CANCEL_REQUESTED}) | TERMINAL
# A report can be lost in favour of a later one, so every state may be skipped; Preparing and
# Queued follow each other both ways.
FOLLOWERS: dict[int, frozenset[int]] = {
    _NOT_STARTED: _LATER | {_STARTING, _QUEUED, _PREPARING},
    _STARTING: _LATER | {_QUEUED, _PREPARING},
    _QUEUED: _LATER | {_PREPARING},
    _PREPARING: _LATER | {_QUEUED},
    _RUNNING: _LATER - {_RUNNING},
    _FINALIZING: TERMINAL | {_NOT_RESPONDING, _CANCEL_REQUESTED},
    _PAUSED: (_LATER | {_QUEUED, _PREPARING}) - {_PAUSED},
    _NOT_RESPONDING: (_LATER | {_QUEUED, _PREPARING}) - {_NOT_RESPONDING},
    _CANCEL_REQUESTED: TERMINAL,
    _COMPLETED: frozenset(),
    _FAILED: frozenset(),
    _CANCELED: frozenset(),
}
OF_ALLOCATION: dict[int, "RunState.ValueType"] = {
    compute.ALLOCATION_STATE_QUEUED: _QUEUED,
    compute.ALLOCATION_STATE_ASSIGNED: _QUEUED,
    compute.ALLOCATION_STATE_PREPARING: _PREPARING,
    compute.ALLOCATION_STATE_RUNNING: _RUNNING,
    compute.ALLOCATION_STATE_FINALIZING: _FINALIZING,
    compute.ALLOCATION_STATE_SUCCEEDED: _COMPLETED,
    compute.ALLOCATION_STATE_FAILED: _FAILED,
    compute.ALLOCATION_STATE_CANCELED: _CANCELED,
    compute.ALLOCATION_STATE_NOT_RESPONDING: _NOT_RESPONDING,
}


def is_terminal(state: int) -> bool:
    """Whether nothing can follow."""
    return state in TERMINAL


def verb(state: "RunState.ValueType") -> str:
    """`cancel_requested` for `RUN_STATE_CANCEL_REQUESTED`: the verb of the journal event."""
    return RunState.Name(state).removeprefix("RUN_STATE_").lower()


def accept(run: Run, moment: Timestamp) -> Fact:
    """The first state of a run: an interactive one runs already."""
    if run.kind == pb.RUN_KIND_INTERACTIVE:
        run.state = _RUNNING
        run.reason.CopyFrom(Reason(code="STARTED", message=f"{run.creator} started the run by hand."))
        run.start_time.CopyFrom(moment)
    else:
        run.state = _STARTING
        run.reason.CopyFrom(Reason(code="SUBMITTED", message=f"{run.creator} submitted the run."))
    run.state_time.CopyFrom(moment)
    return Fact("created", run.reason.code, run.reason.message)


def request_cancel(run: Run, actor: str, message: str, moment: Timestamp) -> Fact | None:
    """Asks the run to stop; None when that was asked before. Raises `FailedPrecondition`."""
    if run.state == _CANCEL_REQUESTED:
        return None
    if run.state not in CANCELLABLE:
        raise FailedPrecondition("RUN_ENDED", f"{run.name} is {verb(run.state)}.", "Nothing is left to stop.")
    text = f"{actor} asked the run to stop" + (f": {message}" if message else ".")
    enter(run, _CANCEL_REQUESTED, Reason(code="CANCEL_REQUESTED", message=text), moment)
    return Fact("cancel_requested", "CANCEL_REQUESTED", text, actor)


def follow(run: Run, allocation: compute.Allocation, cause: str) -> Fact | None:
    """Moves the run to where its allocation is; None for news that are old or come too late.

    Idempotent, and safe against any order of delivery: an older revision than the one
    known changes nothing, and a run that was asked to stop only ends.
    """
    if run.state in TERMINAL or (run.allocation and run.allocation != allocation.name):
        return None
    target = OF_ALLOCATION.get(allocation.state)
    if target is None or allocation.revision <= run.allocation_revision:
        return None
    if target != run.state and target not in FOLLOWERS[run.state]:
        return None
    _copy(run, allocation)
    reason = Reason()
    reason.CopyFrom(allocation.reason)
    reason.code = reason.code or verb(target).upper()
    enter(run, target, reason, allocation.update_time)
    if target in TERMINAL:
        run.end_time.CopyFrom(_later(run.state_time, allocation.end_time))
    return Fact(verb(target), reason.code, reason.message, cause=cause)


def _copy(run: Run, allocation: compute.Allocation) -> None:
    run.allocation = allocation.name
    run.allocation_revision = allocation.revision
    run.ClearField("phases")
    run.phases.extend(allocation.phases)
    if allocation.HasField("exit_code"):
        run.exit_code = allocation.exit_code
    if allocation.HasField("start_time"):
        run.start_time.CopyFrom(allocation.start_time)


def ended(run: Run) -> FailedPrecondition:
    """The error for what cannot be done to a run that has ended."""
    return FailedPrecondition("RUN_ENDED", f"{run.name} is {verb(run.state)}.", "Nothing can follow.")


def archive(run: Run, moment: Timestamp) -> Fact | None:
    """Hides a run; None when it is hidden. Raises `FailedPrecondition` before it has ended."""
    if run.HasField("archive_time"):
        return None
    if not is_terminal(run.state):
        raise FailedPrecondition(
            "RUN_NOT_ENDED", f"{run.name} is {verb(run.state)}.", "Cancel it, or wait until it has ended."
        )
    run.archive_time.CopyFrom(moment)
    return Fact("archived", "REQUESTED", "The run is hidden from lists and searches.")


def restore(run: Run) -> Fact | None:
    """Shows an archived run again; None when it is shown."""
    if not run.HasField("archive_time"):
        return None
    run.ClearField("archive_time")
    return Fact("restored", "REQUESTED", "The run is shown again.")


def enter(run: Run, state: "RunState.ValueType", reason: Reason, moment: Timestamp) -> None:
    """Sets state and reason, and since when."""
    if state != run.state:
        # The clocks of two services differ a little; the run's own times never go back.
        run.state_time.CopyFrom(_later(run.state_time, moment))
    run.state = state
    run.reason.CopyFrom(reason)


def _later(one: Timestamp, other: Timestamp) -> Timestamp:
    return max(one, other, key=lambda moment: (moment.seconds, moment.nanos))
