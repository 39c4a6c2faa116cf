"""When monitors are due, and what they show."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from stellwerk_inference.monitors import domain, schedule
from stellwerk_inference.monitors.turns import Turns
from stellwerk_protos.common.v1.common_pb2 import Reason
from stellwerk_protos.inference.v1 import monitors_pb2 as pb

BERLIN = "Europe/Berlin"


def local(cron: str, after: datetime, count: int = 3) -> list[str]:
    """The times in Berlin."""
    found = schedule.upcoming(cron, BERLIN, after, count)
    assert found == sorted(set(found))
    return [due.astimezone(ZoneInfo(BERLIN)).strftime("%d %H:%M") for due in found]


@pytest.mark.parametrize(
    ("cron", "after", "due"),
    [
        ("0 6 * * *", (2026, 11, 23, 4), ["23 06:00", "24 06:00", "25 06:00"]),
        ("30 7 * * 1-5", (2026, 11, 27, 12), ["30 07:30", "01 07:30", "02 07:30"]),
        # The hour that there is not: once, at its end. The one that comes twice: once a day, or twice.
        ("30 2 * * *", (2026, 3, 28, 12), ["29 03:00", "30 02:30", "31 02:30"]),
        ("30 2 * * *", (2026, 10, 24, 12), ["25 02:30", "26 02:30", "27 02:30"]),
        ("30 * * * *", (2026, 10, 25, 0), ["25 02:30", "25 02:30", "25 03:30"]),
    ],
)
def test_schedules_follow_the_clock_on_the_wall(
    cron: str, after: tuple[int, int, int, int], due: list[str]
) -> None:
    schedule.check(cron, BERLIN)
    assert local(cron, datetime(*after, tzinfo=UTC)) == due


def test_each_time_is_later_than_the_one_before_through_both_changes_of_the_clock() -> None:
    for cron in ("*/7 * * * *", "50 2 * * *", "59 1-3 * * *"):
        for moment in (datetime(2026, 3, 28, 23, tzinfo=UTC), datetime(2026, 10, 24, 23, tzinfo=UTC)):
            for _ in range(40):
                (due,) = schedule.upcoming(cron, BERLIN, moment)
                assert due > moment
                moment = due


def monitor(state: pb.MonitorState.ValueType = domain.PENDING) -> pb.Monitor:
    return pb.Monitor(name="workspaces/demo/monitors/m", state=state, min_rows=10)


def check(
    number: int, found: pb.MonitorState.ValueType, end: datetime = datetime(2026, 11, 23, tzinfo=UTC)
) -> pb.MonitorCheck:
    made = pb.MonitorCheck(
        name=f"workspaces/demo/monitors/m/checks/{number}", found=found, reason=Reason(code="X")
    )
    made.window_end_time.FromDatetime(end)
    return made


@pytest.mark.parametrize(
    ("before", "found", "verb"),
    [
        (domain.PENDING, domain.OK, "checked"),
        (domain.OK, domain.OK, "checked"),
        (domain.OK, domain.DRIFTED, "drifted"),
        (domain.PENDING, domain.DRIFTED, "drifted"),
        (domain.DRIFTED, domain.DRIFTED, "checked"),
        (domain.DRIFTED, domain.OK, "recovered"),
        (domain.FAILED, domain.OK, "recovered"),
        (domain.OK, domain.FAILED, "failed"),
        (domain.OK, domain.NO_DATA, "no_data"),
    ],
)
def test_a_change_of_state_has_its_own_event(
    before: pb.MonitorState.ValueType, found: pb.MonitorState.ValueType, verb: str
) -> None:
    shown = monitor(before)
    fact = domain.follow(shown, check(1, found), None)
    assert fact is not None
    assert (fact.verb, shown.state, shown.last_check) == (verb, found, "workspaces/demo/monitors/m/checks/1")


def test_the_latest_window_counts_in_whatever_order_checks_end() -> None:
    shown, earlier = monitor(), datetime(2026, 11, 22, tzinfo=UTC)
    newest = check(2, domain.OK)
    assert domain.follow(shown, newest, None)
    assert domain.follow(shown, check(3, domain.DRIFTED, earlier), newest) is None
    assert domain.follow(shown, check(1, domain.DRIFTED), newest) is None
    assert (shown.state, shown.last_check) == (domain.OK, newest.name)


def test_the_reason_of_drift_names_the_worst_columns() -> None:
    result = pb.MonitorCheck(row_count=500, baseline_row_count=1_000)
    for index in range(8):
        result.columns.add(
            column=f"c{index}", metric=pb.DRIFT_METRIC_PSI, value=9 - index, threshold=0.2, drifted=index < 7
        )
    ended = check(1, pb.MONITOR_STATE_UNSPECIFIED)
    fact = domain.complete(ended, result, monitor(), datetime.now(UTC))
    assert (fact.verb, fact.code, ended.found) == ("completed", "MODEL_DRIFTED", domain.DRIFTED)
    assert fact.message.startswith("7 of 8 columns moved away from the baseline: c0 PSI 9 (threshold 0.2)")
    assert fact.message.endswith("and 2 more.")


def test_a_schedule_that_was_away_goes_on_from_now() -> None:
    now = datetime(2026, 11, 23, 12, tzinfo=UTC)
    planned = domain.new(pb.Monitor(cron="0 * * * *"), "users/a", now - timedelta(days=30))
    assert domain.is_due(planned, now)
    domain.begin(planned, 1, ("SCHEDULED", ""), now)
    assert not domain.is_due(planned, now)
    assert planned.next_check_time.ToDatetime(UTC) == datetime(2026, 11, 23, 13, tzinfo=UTC)
    # One that somebody asks for leaves the schedule as it is.
    domain.begin(planned, 2, ("REQUESTED", ""), now)
    assert planned.next_check_time.ToDatetime(UTC) == datetime(2026, 11, 23, 13, tzinfo=UTC)
    assert planned.check_count == 2


def test_workspaces_take_turns_and_none_has_all_places() -> None:
    begun = datetime(2026, 11, 23, tzinfo=UTC)
    waiting = {f"workspaces/many/monitors/m{n}": begun for n in range(50)}
    waiting["workspaces/few/monitors/a"] = begun + timedelta(hours=1)
    waiting["workspaces/few/monitors/b"] = begun + timedelta(hours=2)
    turns = Turns(3)
    assert turns.order(waiting) == ["workspaces/many", "workspaces/few"], "who waits longest is first"
    turns.begin("workspaces/many")
    assert turns.order(waiting) == ["workspaces/few", "workspaces/many"]
    turns.begin("workspaces/few")
    turns.begin("workspaces/many")
    assert turns.order(waiting) == ["workspaces/few"], "one place is left, and it is for others"
    turns.end("workspaces/many")
    assert turns.order(waiting) == ["workspaces/few", "workspaces/many"]
    alone = Turns(1)
    alone.begin("workspaces/many")
    alone.end("workspaces/many")
    assert alone.order(waiting) == ["workspaces/few", "workspaces/many"]


def test_workspaces_that_come_again_and_again_do_not_go_before_one_that_waits() -> None:
    begun = datetime(2026, 11, 23, tzinfo=UTC)
    turns, order = Turns(3), ""
    for number in range(9):
        # There is always work of the first; the others bring one check after the other, a moment apart.
        waiting = {"workspaces/c/monitors/m": begun}
        waiting[f"workspaces/{'ab'[number % 2]}/monitors/m"] = begun + timedelta(hours=number)
        workspace = turns.order(waiting)[0]
        turns.begin(workspace)
        turns.end(workspace)
        order += workspace[-1]
    assert order == "cbacabcba"
