"""The status machine over random histories."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stellwerk_platform.documents import timestamp
from stellwerk_platform.errors import FailedPrecondition
from stellwerk_protos.common.v1.common_pb2 import Reason
from stellwerk_protos.compute.v1 import computes_pb2 as compute
from stellwerk_protos.runs.v1 import runs_pb2 as pb
from stellwerk_runs.runs import states

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
ALLOCATION = "workspaces/demo/allocations/a1"
CANCEL = "cancel"
# An allocation's report (revision, state, seconds since the epoch), or a person's cancel.
REPORTS = st.tuples(
    st.integers(1, 30), st.sampled_from(sorted(states.OF_ALLOCATION)), st.integers(-50, 1_000)
)
HISTORIES = st.lists(st.one_of(REPORTS, st.just(CANCEL)), max_size=30)


def at(seconds: float) -> "pb.timestamp__pb2.Timestamp":  # type: ignore[name-defined]
    return timestamp(EPOCH + timedelta(seconds=seconds))


def submitted() -> pb.Run:
    run = pb.Run(name="workspaces/demo/runs/r1", creator="users/owner")
    states.accept(run, at(0))
    return run


def allocation(revision: int, state: int, seconds: float = 0) -> compute.Allocation:
    moment = at(seconds)
    return compute.Allocation(
        name=ALLOCATION,
        owner="workspaces/demo/runs/r1",
        revision=revision,
        state=state,  # type: ignore[arg-type]  # a number from the enum
        update_time=moment,
        end_time=moment,
    )


def copy(run: pb.Run) -> pb.Run:
    result = pb.Run()
    result.CopyFrom(run)
    return result


def play(run: pb.Run, step: object) -> bool:
    """Whether the step changed the run."""
    if not isinstance(step, tuple):
        try:
            return states.request_cancel(run, "users/owner", "", at(5)) is not None
        except FailedPrecondition:
            return False
    revision, state, seconds = step
    return states.follow(run, allocation(revision, state, seconds), "cause") is not None


@given(HISTORIES)
def test_every_history_keeps_the_rules(history: list[object]) -> None:
    run = submitted()
    for step in history:
        before = copy(run)
        changed = play(run, step)
        assert changed or run == before
        assert run.reason.code
        if states.is_terminal(before.state):
            assert not changed
        if run.state != before.state:
            assert run.state in states.FOLLOWERS[before.state]
        assert run.state_time.ToNanoseconds() >= before.state_time.ToNanoseconds()
        assert run.HasField("end_time") == states.is_terminal(run.state)
        if run.HasField("end_time"):
            assert run.end_time.ToNanoseconds() >= run.state_time.ToNanoseconds()
        assert run.allocation_revision >= before.allocation_revision


@given(st.lists(REPORTS, max_size=20, unique_by=lambda report: report[0]), st.randoms())
def test_repeated_news_change_nothing(reports: list[tuple[int, int, int]], random: object) -> None:
    run = submitted()
    for report in reports:
        play(run, report)
        again = copy(run)
        assert not play(again, report)
        assert again == run


@given(st.sampled_from(sorted(states.OF_ALLOCATION)))
def test_a_run_that_did_not_respond_returns_to_any_earlier_state(state: int) -> None:
    run = submitted()
    states.follow(run, allocation(1, compute.ALLOCATION_STATE_RUNNING), "")
    states.follow(run, allocation(2, compute.ALLOCATION_STATE_NOT_RESPONDING), "")
    assert run.state == pb.RUN_STATE_NOT_RESPONDING
    states.follow(run, allocation(3, state), "")
    assert run.state == states.OF_ALLOCATION[state]


def test_preparing_and_queued_follow_each_other_both_ways() -> None:
    run = submitted()
    for revision, state in enumerate(
        [compute.ALLOCATION_STATE_PREPARING, compute.ALLOCATION_STATE_QUEUED] * 2, start=1
    ):
        fact = states.follow(run, allocation(revision, state), "event-1")
        assert fact is not None
        assert (run.state, fact.verb, fact.cause) == (
            states.OF_ALLOCATION[state],
            states.verb(run.state),
            "event-1",
        )


def test_a_run_asked_to_stop_only_ends() -> None:
    run = submitted()
    states.follow(run, allocation(1, compute.ALLOCATION_STATE_RUNNING), "")
    fact = states.request_cancel(run, "users/ada", "enough", at(9))
    assert fact is not None
    assert (fact.verb, fact.actor) == ("cancel_requested", "users/ada")
    assert states.follow(run, allocation(2, compute.ALLOCATION_STATE_FINALIZING), "") is None
    assert states.follow(run, allocation(3, compute.ALLOCATION_STATE_CANCELED), "") is not None
    assert run.state == pb.RUN_STATE_CANCELED


def test_a_cancel_while_outputs_are_collected_is_taken_and_one_after_the_end_says_so() -> None:
    run = submitted()
    states.follow(run, allocation(1, compute.ALLOCATION_STATE_FINALIZING), "")
    assert states.request_cancel(run, "users/ada", "enough", at(9)) is not None
    assert states.follow(run, allocation(2, compute.ALLOCATION_STATE_SUCCEEDED), "") is not None
    with pytest.raises(FailedPrecondition) as caught:
        states.request_cancel(run, "users/ada", "", at(9))
    assert caught.value.reason == "RUN_ENDED"


def test_phases_times_and_exit_code_are_copied() -> None:
    run = submitted()
    news = allocation(4, compute.ALLOCATION_STATE_FAILED, 60)
    news.reason.CopyFrom(Reason(code="COMMAND_FAILED", message="Exit code 3.", cure="See the log."))
    news.phases.add(name="run_command", start_time=at(10), end_time=at(60))
    news.start_time.CopyFrom(at(10))
    news.exit_code = 3
    states.follow(run, news, "")
    assert (run.reason, list(run.phases), run.exit_code) == (news.reason, list(news.phases), 3)
    assert (run.start_time, run.end_time, run.allocation) == (at(10), at(60), ALLOCATION)
