"""The life of a monitor and of its checks.

Each rule changes the resource and returns the fact to record, or None when there is
nothing to do.
"""

from collections.abc import Sequence
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from stellwerk_inference.monitors import requests, schedule
from stellwerk_platform import names
from stellwerk_platform.documents import timestamp
from stellwerk_platform.journal import Fact
from stellwerk_protos.common.v1.common_pb2 import Reason
from stellwerk_protos.inference.v1 import monitors_pb2 as pb

PENDING, OK = pb.MONITOR_STATE_PENDING, pb.MONITOR_STATE_OK
DRIFTED, NO_DATA = pb.MONITOR_STATE_DRIFTED, pb.MONITOR_STATE_NO_DATA
FAILED = pb.MONITOR_STATE_FAILED
RUNNING = pb.MONITOR_CHECK_STATE_RUNNING
COMPLETED, CHECK_FAILED = pb.MONITOR_CHECK_STATE_COMPLETED, pb.MONITOR_CHECK_STATE_FAILED
KEPT_CHECKS = 1_000
MAX_WAITING = 10
# Of a workspace.
MAX_MONITORS = 200
_UPCOMING = 5
_SHOWN = 5
# What the event of a monitor is called whose state has changed to this.
_VERBS = {OK: "recovered", DRIFTED: "drifted", NO_DATA: "no_data", FAILED: "failed"}
_METRICS = {
    pb.DRIFT_METRIC_PSI: "PSI",
    pb.DRIFT_METRIC_JENSEN_SHANNON: "Jensen-Shannon distance",
    pb.DRIFT_METRIC_KOLMOGOROV_SMIRNOV: "Kolmogorov-Smirnov statistic",
    pb.DRIFT_METRIC_CHI_SQUARE: "Cramér's V",
}


def new(monitor: pb.Monitor, creator: str, now: datetime) -> pb.Monitor:
    """A monitor that was checked, at the beginning of its life."""
    monitor.creator = creator
    monitor.state = PENDING
    monitor.reason.CopyFrom(Reason(code="NOT_CHECKED", message="It was not checked yet."))
    _plan(monitor, now)
    return monitor


def update(
    monitor: pb.Monitor, wanted: pb.Monitor, request: pb.UpdateMonitorRequest, now: datetime
) -> Fact | None:
    """Takes what the mask names; a schedule that has changed begins anew."""
    before = pb.Monitor()
    before.CopyFrom(monitor)
    requests.take(monitor, wanted, request)
    if monitor == before:
        return None
    if (monitor.cron, monitor.time_zone, monitor.paused) != (before.cron, before.time_zone, before.paused):
        _plan(monitor, now)
    return Fact("updated", "REQUESTED", f"Changed: {', '.join(sorted(request.update_mask.paths))}.")


def delete(monitor: pb.Monitor) -> Fact:
    """The schedule ends with the monitor."""
    monitor.ClearField("next_check_time")
    return Fact("deleted", "REQUESTED")


def _plan(monitor: pb.Monitor, now: datetime) -> None:
    monitor.ClearField("next_check_time")
    for due in [] if monitor.paused else schedule.upcoming(monitor.cron, monitor.time_zone, now):
        monitor.next_check_time.FromDatetime(due)


def upcoming(monitor: pb.Monitor) -> Sequence[Timestamp]:
    """The next times of the schedule."""
    if not monitor.HasField("next_check_time"):
        return []
    first = monitor.next_check_time.ToDatetime(UTC)
    later = schedule.upcoming(monitor.cron, monitor.time_zone, first, _UPCOMING - 1)
    return [timestamp(due) for due in (first, *later)]


def is_due(monitor: pb.Monitor, now: datetime) -> bool:
    """Whether the schedule wants a check."""
    return monitor.HasField("next_check_time") and monitor.next_check_time.ToDatetime(UTC) <= now


def begin(monitor: pb.Monitor, number: int, reason: tuple[str, str], now: datetime) -> Fact:
    """Counts a check; the schedule goes on from now, however often it was due meanwhile."""
    code, message = reason
    monitor.check_count += 1
    if is_due(monitor, now):
        _plan(monitor, now)
    return Fact("check_started", code, f"Check {number}. {message}".strip())


def new_check(monitor: pb.Monitor, number: int, creator: str, end: datetime) -> pb.MonitorCheck:
    """A check of the window that ends then."""
    check = pb.MonitorCheck(
        name=f"{monitor.name}/checks/{number}",
        creator=creator,
        state=RUNNING,
        reason=Reason(code="CHECK_WAITS", message="Waits for its turn, or goes on."),
    )
    check.window_end_time.CopyFrom(timestamp(end))
    check.window_start_time.CopyFrom(timestamp(end - monitor.window.ToTimedelta()))
    return check


def complete(check: pb.MonitorCheck, result: pb.MonitorCheck, monitor: pb.Monitor, now: datetime) -> Fact:
    """Takes what the comparison has found."""
    for field in ("baseline_row_count", "row_count", "unreadable_count"):
        setattr(check, field, getattr(result, field))
    check.columns.extend(result.columns)
    drifted = [entry for entry in check.columns if entry.drifted]
    check.state = COMPLETED
    if check.row_count < monitor.min_rows:
        check.found = NO_DATA
        reason = _too_few(check, monitor)
    elif drifted:
        check.found = DRIFTED
        reason = _moved(check, drifted, monitor)
    else:
        check.found = OK
        reason = _unmoved(check)
    return _end(check, "completed", reason, now)


def fail(check: pb.MonitorCheck, reason: Reason, now: datetime) -> Fact:
    """The check could not be made."""
    check.state, check.found = CHECK_FAILED, FAILED
    return _end(check, "failed", reason, now)


def _end(check: pb.MonitorCheck, verb: str, reason: Reason, now: datetime) -> Fact:
    check.reason.CopyFrom(reason)
    check.end_time.CopyFrom(timestamp(now))
    return Fact(verb, reason.code, reason.message)


def follow(monitor: pb.Monitor, check: pb.MonitorCheck, last: pb.MonitorCheck | None) -> Fact | None:
    """The monitor shows what the check with the latest window found; `last` is the one it shows."""
    if last is not None and _place(check) < _place(last):
        return None
    before = monitor.state
    monitor.state = check.found
    monitor.reason.CopyFrom(check.reason)
    monitor.last_check = check.name
    verb = _VERBS[check.found] if check.found != before else "checked"
    # That the first check is good is no recovery.
    if (before, check.found) == (PENDING, OK):
        verb = "checked"
    return Fact(verb, check.reason.code, check.reason.message)


def _place(check: pb.MonitorCheck) -> tuple[int, int]:
    return check.window_end_time.ToMilliseconds(), int(names.id_of(check.name))


def _too_few(check: pb.MonitorCheck, monitor: pb.Monitor) -> Reason:
    unreadable = f" {check.unreadable_count:,} events could not be read." if check.unreadable_count else ""
    return Reason(
        code="TOO_FEW_ROWS",
        message=f"{check.row_count:,} rows of {monitor.collection} were collected in the window, fewer than "
        f"{monitor.min_rows:,}.{unreadable}",
        cure=f"Collect with `stellwerk deployment update {monitor.deployment or 'DEPLOYMENT'} "
        f"--endpoint {names.id_of(monitor.endpoint)} --collect {monitor.collection}`, wait for requests, or "
        "give the monitor a longer window.",
    )


def _moved(check: pb.MonitorCheck, drifted: Sequence[pb.ColumnDrift], monitor: pb.Monitor) -> Reason:
    compared = len({entry.column for entry in check.columns})
    moved = len({entry.column for entry in drifted})
    worst = ", ".join(_value(entry) for entry in drifted[:_SHOWN])
    more = f" and {len(drifted) - _SHOWN} more" if len(drifted) > _SHOWN else ""
    return Reason(
        code="MODEL_DRIFTED",
        message=f"{moved} of {compared} columns moved away from the baseline: {worst}{more}.",
        cure=f"See `stellwerk monitor show {names.id_of(monitor.name)}`. If the new data is right, train "
        "with it, and give the monitor the new training data as its baseline.",
    )


def _unmoved(check: pb.MonitorCheck) -> Reason:
    compared = len({entry.column for entry in check.columns})
    return Reason(
        code="NO_DRIFT",
        message=f"{check.row_count:,} rows are like the baseline in all {compared} columns; the largest "
        f"value is {_value(check.columns[0])}.",
    )


def _value(entry: pb.ColumnDrift) -> str:
    return f"{entry.column} {_METRICS[entry.metric]} {entry.value:.3g} (threshold {entry.threshold:g})"
