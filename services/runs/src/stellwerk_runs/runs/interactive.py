"""The rules of interactive runs: a process outside every compute that holds a lease itself.

Pure functions on the proto message, beside `states.py`.
"""

from dataclasses import replace

from google.protobuf.timestamp_pb2 import Timestamp

from stellwerk_platform.errors import FailedPrecondition, InvalidArgument
from stellwerk_platform.journal import Fact
from stellwerk_protos.common.v1.common_pb2 import Reason
from stellwerk_protos.runs.v1 import runs_pb2 as pb
from stellwerk_protos.runs.v1.runs_pb2 import Run
from stellwerk_runs.runs import states

# Why somebody else ended a run.
LOST = frozenset({"LEASE_EXPIRED", "PARENT_RUN_ENDED"})
# So long a run that does not respond may come back.
LOST_SECONDS = 24 * 3_600.0
_MESSAGE_LENGTH = 5_000
_ENDS = {
    pb.RUN_STATE_COMPLETED: Reason(code="COMPLETED", message="The process said that it is done."),
    pb.RUN_STATE_FAILED: Reason(code="FAILED", message="The process said that it failed."),
    pb.RUN_STATE_CANCELED: Reason(code="CANCELED", message="The process stopped when it was asked to."),
}


def check(run: Run) -> None:
    """Raises `FailedPrecondition` for a run that a compute looks after."""
    if run.kind != pb.RUN_KIND_INTERACTIVE:
        raise FailedPrecondition(
            "NOT_INTERACTIVE", f"{run.name} is run by a compute.", "Only its agent says how it is."
        )


def check_finish(request: pb.FinishRunRequest) -> None:
    """Raises `InvalidArgument`."""
    if request.state not in _ENDS:
        raise InvalidArgument(
            "INVALID_STATE", "A run cannot be finished in this state.", "Use COMPLETED, FAILED or CANCELED."
        )
    for text in (request.reason.code, request.reason.message, request.reason.cure):
        if len(text) > _MESSAGE_LENGTH:
            raise InvalidArgument(
                "TEXT_TOO_LONG", "The reason is too long.", f"Use up to {_MESSAGE_LENGTH:,} characters."
            )


def silence(run: Run, lease_seconds: float, moment: Timestamp) -> Fact | None:
    """The lease ran out: the run does not respond, or, when it was asked to stop, has stopped."""
    if run.state == pb.RUN_STATE_CANCEL_REQUESTED:
        text = f"{run.reason.message} Its process was not heard of for {lease_seconds:g} s after that."
        return end(run, pb.RUN_STATE_CANCELED, Reason(code="CANCELED", message=text), moment)
    if states.is_terminal(run.state) or run.state == pb.RUN_STATE_NOT_RESPONDING:
        return None
    reason = Reason(
        code="LEASE_EXPIRED",
        message=f"The process has not been heard of for {lease_seconds:g} s.",
        cure="It may have ended without saying so. The run goes on when its process is back within 24 hours.",
    )
    states.enter(run, pb.RUN_STATE_NOT_RESPONDING, reason, moment)
    return Fact("not_responding", reason.code, reason.message)


def give_up(run: Run, moment: Timestamp) -> Fact | None:
    """Nothing was heard for so long that nothing will be."""
    if states.is_terminal(run.state):
        return None
    reason = Reason(
        code="LEASE_EXPIRED",
        message="The process has not been heard of for 24 hours.",
        cure="End a run with run.complete() or run.fail(), or use `with ws.start_run()`.",
    )
    return end(run, pb.RUN_STATE_FAILED, reason, moment)


def left_behind(run: Run, above: Run, cause: str, moment: Timestamp) -> Fact | None:
    """The process of `above`, which had this run in it, is gone; its agent would have delivered the rest."""
    if states.is_terminal(run.state):
        return None
    text = f"{above.name}, whose script this run was a part of, is {states.verb(above.state)}"
    if run.state == pb.RUN_STATE_CANCEL_REQUESTED or above.state == pb.RUN_STATE_CANCELED:
        fact = end(run, pb.RUN_STATE_CANCELED, Reason(code="CANCELED", message=f"{text}."), moment)
    else:
        reason = Reason(
            code="PARENT_RUN_ENDED",
            message=f"{text} and did not say how this one ended.",
            cure="Use `with run.child() as child:`, or call child.complete() or child.fail().",
        )
        fact = end(run, pb.RUN_STATE_FAILED, reason, moment)
    return replace(fact, cause=cause)


def revive(run: Run, moment: Timestamp) -> Fact | None:
    """The process is heard of again."""
    if run.state != pb.RUN_STATE_NOT_RESPONDING:
        return None
    states.enter(run, pb.RUN_STATE_RUNNING, Reason(code="RESPONDS", message="The process is back."), moment)
    return Fact("running", run.reason.code, run.reason.message)


def finish(run: Run, state: "pb.RunState.ValueType", reason: Reason, moment: Timestamp) -> Fact | None:
    """The process says how it ended; None when it said so before. Raises `FailedPrecondition`."""
    check(run)
    if run.state == state:
        return None
    if states.is_terminal(run.state):
        raise states.ended(run)
    said = Reason()
    said.CopyFrom(_ENDS[state])
    said.MergeFrom(reason)
    return end(run, state, said, moment)


def end(run: Run, state: "pb.RunState.ValueType", reason: Reason, moment: Timestamp) -> Fact:
    """Ends the run."""
    states.enter(run, state, reason, moment)
    run.end_time.CopyFrom(run.state_time)
    return Fact(states.verb(state), reason.code, reason.message)
