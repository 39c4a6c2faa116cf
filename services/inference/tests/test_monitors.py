"""Monitors in the running service; the test plays the registry and its blob store."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from services.inference.tests.monitor_support import TRAINING, Data, checked, ended, monitor_request
from services.inference.tests.support import WORKSPACE, Inference, Journal
from services.inference.tests.test_inference import reason_of
from stellwerk_inference.monitors import baselines, domain
from stellwerk_inference.monitors.store import MonitorStore
from stellwerk_platform.errors import from_rpc
from stellwerk_platform.mongo import Database
from stellwerk_protos.common.v1.common_pb2 import File
from stellwerk_protos.inference.v1 import endpoints_pb2
from stellwerk_protos.inference.v1 import monitors_pb2 as pb


@pytest.fixture
async def data(inference: Inference) -> AsyncIterator[Data]:
    async with Data(inference).run() as running:
        yield running


async def made(inference: Inference, name: str, **values: Any) -> pb.Monitor:
    """A monitor of an endpoint of the same name."""
    endpoint = (await inference.create_endpoint(name)).name
    request = monitor_request(endpoint, name, **values)
    found: pb.Monitor = await inference.monitors.CreateMonitor(request, timeout=150)
    return found


async def shown(inference: Inference, name: str) -> pb.Monitor:
    found: pb.Monitor = await inference.monitors.GetMonitor(pb.GetMonitorRequest(name=name))
    return found


async def test_a_monitor_has_defaults_and_the_number_of_its_baseline(
    inference: Inference, data: Data
) -> None:
    monitor = await made(inference, "defaults", cron="0 6 * * *", time_zone="Europe/Berlin")
    assert monitor.baseline == f"{TRAINING}/2"
    assert (monitor.state, monitor.min_rows, monitor.max_rows) == (domain.PENDING, 100, 100_000)
    assert monitor.window.ToTimedelta() == timedelta(days=1)
    assert [(entry.metric, entry.threshold) for entry in monitor.thresholds] == [(pb.DRIFT_METRIC_PSI, 0.2)]
    assert monitor.next_check_time == monitor.upcoming_check_times[0]
    assert len(monitor.upcoming_check_times) == 5
    listed = await inference.monitors.ListMonitors(
        pb.ListMonitorsRequest(parent=WORKSPACE, endpoint=monitor.endpoint)
    )
    assert [found.name for found in listed.monitors] == [monitor.name]


async def test_a_monitor_may_be_tried_before_it_is_made(inference: Inference, data: Data) -> None:
    endpoint = (await inference.create_endpoint("tried")).name
    request = monitor_request(endpoint, "tried", cron="0 0 * * *")
    request.validate_only = True
    assert len((await inference.monitors.CreateMonitor(request)).upcoming_check_times) == 5
    assert await reason_of(shown(inference, f"{WORKSPACE}/monitors/tried")) == "MONITOR_NOT_FOUND"


PSI, KS = pb.DRIFT_METRIC_PSI, pb.DRIFT_METRIC_KOLMOGOROV_SMIRNOV
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"endpoint": f"{WORKSPACE}/endpoints/none"}, "ENDPOINT_NOT_FOUND"),
    ({"deployment": "none"}, "DEPLOYMENT_NOT_FOUND"),
    ({"baseline": "workspaces/other/datasets/a/versions/1"}, "WORKSPACE_MISMATCH"),
    ({"baseline": "training"}, "INVALID_NAME"),
    ({"baseline_path": "nothing/here"}, "BASELINE_PATH_NOT_FOUND"),
    ({"baseline_path": "../secret"}, "INVALID_PATH"),
    ({"collection": "../x"}, "INVALID_DATA_COLLECTION"),
    ({"cron": "* * * * * *"}, "INVALID_CRON"),
    ({"cron": "61 * * * *"}, "INVALID_CRON"),
    ({"cron": "0 0 31 2 *"}, "INVALID_CRON"),
    ({"cron": "0 0 L-3 * *"}, "INVALID_CRON"),
    ({"time_zone": "Europe/Nowhere"}, "INVALID_TIME_ZONE"),
    ({"time_zone": "../../etc/passwd"}, "INVALID_TIME_ZONE"),
    ({"window": timedelta(seconds=59)}, "INVALID_WINDOW"),
    ({"window": timedelta(days=91)}, "INVALID_WINDOW"),
    ({"min_rows": -1}, "INVALID_ROWS"),
    ({"max_rows": 1_000_001}, "INVALID_ROWS"),
    ({"columns": ["a", "a"]}, "INVALID_COLUMNS"),
    ({"thresholds": [pb.DriftThreshold(threshold=0.1)]}, "INVALID_THRESHOLD"),
    (
        {"thresholds": [pb.DriftThreshold(metric=pb.DRIFT_METRIC_PSI, threshold=float("nan"))]},
        "INVALID_THRESHOLD",
    ),
    (
        {"thresholds": [pb.DriftThreshold(metric=pb.DRIFT_METRIC_KOLMOGOROV_SMIRNOV, threshold=1.5)]},
        "INVALID_THRESHOLD",
    ),
    ({"tags": {"": "x"}}, "INVALID_TAG"),
]


async def test_what_cannot_be_is_refused_before_it_is_stored(inference: Inference, data: Data) -> None:
    endpoint = (await inference.create_endpoint("unmonitored")).name
    for values, reason in REFUSED:
        request = monitor_request(endpoint, "refused", **values)
        assert await reason_of(inference.monitors.CreateMonitor(request)) == reason, values


async def test_columns_that_the_baseline_lacks_are_refused_with_those_that_it_has(
    inference: Inference, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "LOOK_SECONDS", 120.0)
    monitor = await made(inference, "named", columns=["x0", "target"])
    wrong = monitor_request(monitor.endpoint, "wrong", columns=["x0", "X1"])
    wrong.validate_only = True
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await inference.monitors.CreateMonitor(wrong, timeout=150)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    error = from_rpc(refused.value)
    assert error.reason == "COLUMN_NOT_FOUND"
    assert "no column 'X1', but 5 columns (x0, x1, x2, x3, target)" in error.message
    assert "Did you mean 'x1'?" in error.cure
    threshold = pb.DriftThreshold(metric=pb.DRIFT_METRIC_PSI, column="nowhere", threshold=0.1)
    update = pb.UpdateMonitorRequest(
        monitor=pb.Monitor(name=monitor.name, thresholds=[threshold]),
        update_mask=FieldMask(paths=["columns", "thresholds"]),
    )
    changing = inference.monitors.UpdateMonitor(update, timeout=150)
    assert await reason_of(changing) == "COLUMN_NOT_FOUND"
    data.files = [File(path="train/picture.png", sha256="0" * 64)]
    picture = inference.monitors.CreateMonitor(monitor_request(monitor.endpoint, "picture"))
    assert await reason_of(picture) == "BASELINE_UNREADABLE"


async def test_a_baseline_that_cannot_be_read_in_time_holds_no_monitor_up(
    inference: Inference, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "LOOK_SECONDS", 0.1)
    data.open.clear()
    assert (await made(inference, "unread", columns=["nowhere"])).columns == ["nowhere"]
    data.open.set()


async def test_drift_is_found_told_and_over_again(inference: Inference, data: Data, journal: Journal) -> None:
    monitor = await made(inference, "drifting")
    few = await checked(inference, monitor.name)
    assert (few.state, few.found) == (domain.COMPLETED, domain.NO_DATA)
    assert few.reason.code == "TOO_FEW_ROWS"
    assert data.fetched == 0
    await journal.next("monitor.no_data")

    await data.collect(monitor.endpoint, 200)
    like = await checked(inference, monitor.name)
    assert (like.found, like.baseline_row_count, like.row_count) == (domain.OK, 1_000, 200)
    assert sorted(entry.column for entry in like.columns) == ["x0", "x1", "x2", "x3"]
    await journal.next("monitor.recovered")

    await data.collect(monitor.endpoint, 400, shift=2.0)
    moved = await checked(inference, monitor.name)
    assert (moved.found, moved.row_count) == (domain.DRIFTED, 600)
    assert [entry.column for entry in moved.columns if entry.drifted] == ["x0"]
    event = await journal.next("monitor.drifted")
    assert event["data"]["reason"]["code"] == "MODEL_DRIFTED"
    assert "1 of 4 columns" in event["data"]["reason"]["message"]
    assert "x0 PSI" in event["data"]["reason"]["message"]
    assert event["data"]["resource"]["lastCheck"] == moved.name
    found = await shown(inference, monitor.name)
    assert (found.state, found.reason.code, found.check_count) == (domain.DRIFTED, "MODEL_DRIFTED", 3)

    again = await checked(inference, monitor.name)
    assert again.found == domain.DRIFTED
    assert (await journal.next("monitor.checked"))["data"]["reason"]["code"] == "MODEL_DRIFTED"


async def test_the_events_of_a_check_follow_from_each_other(
    inference: Inference, data: Data, journal: Journal
) -> None:
    monitor = await made(inference, "causes")
    await data.collect(monitor.endpoint, 200)
    await checked(inference, monitor.name)
    kinds = ("monitor.check_started", "monitor_check.created", "monitor_check.completed", "monitor.checked")
    events = await journal.each(*kinds)
    ids = [events[kind]["id"] for kind in kinds]
    causes = [events[kind]["data"]["cause"] for kind in kinds]
    assert causes[1:] == ids[:-1]


async def test_a_check_of_an_older_window_changes_nothing(inference: Inference, data: Data) -> None:
    monitor = await made(inference, "older")
    await data.collect(monitor.endpoint, 200)
    await data.collect(monitor.endpoint, 200, shift=3.0, hours_ago=48)
    now = await checked(inference, monitor.name)
    end = Timestamp()
    end.FromDatetime(datetime.now(UTC) - timedelta(hours=36))
    older = await checked(inference, monitor.name, end_time=end)
    assert (now.found, older.found) == (domain.OK, domain.DRIFTED)
    found = await shown(inference, monitor.name)
    assert (found.state, found.last_check) == (domain.OK, now.name)
    checks = await inference.monitors.ListMonitorChecks(
        pb.ListMonitorChecksRequest(parent=monitor.name, page_size=1)
    )
    assert [check.name for check in checks.checks] == [older.name]
    rest = await inference.monitors.ListMonitorChecks(
        pb.ListMonitorChecksRequest(parent=monitor.name, page_size=1, page_token=checks.next_page_token)
    )
    assert [check.name for check in rest.checks] == [now.name]
    latest = await inference.monitors.GetMonitorCheck(
        pb.GetMonitorCheckRequest(name=f"{monitor.name}/checks/latest")
    )
    assert latest == older


async def test_a_request_that_comes_twice_begins_one_check(inference: Inference, data: Data) -> None:
    monitor = await made(inference, "asked-twice")
    request = pb.CheckMonitorRequest(name=monitor.name, request_id="once")
    first, second = await asyncio.gather(*(inference.monitors.CheckMonitor(request) for _ in range(2)))
    assert first.name == second.name
    await ended(inference, first.name)
    assert (await shown(inference, monitor.name)).check_count == 1


async def test_a_check_that_cannot_be_made_says_why(
    inference: Inference, data: Data, journal: Journal
) -> None:
    monitor = await made(inference, "nowhere", columns=["x0", "target"])
    await data.collect(monitor.endpoint, 200)
    check = await checked(inference, monitor.name)
    assert (check.state, check.found) == (domain.CHECK_FAILED, domain.FAILED)
    assert check.reason.code == "COLUMN_NOT_FOUND"
    assert "was collected has no column 'target'" in check.reason.message
    assert (await journal.next("monitor.failed"))["data"]["reason"]["code"] == "COLUMN_NOT_FOUND"

    data.files = [File(path="train/picture.png", sha256="0" * 64)]
    check = await checked(inference, monitor.name)
    assert check.reason.code == "BASELINE_UNREADABLE"
    data.files = [File(path="train/huge.csv", sha256="0" * 64, size_bytes=3 << 30)]
    check = await checked(inference, monitor.name)
    assert check.reason.code == "BASELINE_TOO_LARGE"

    await inference.stub.DeleteEndpoint(endpoints_pb2.DeleteEndpointRequest(name=monitor.endpoint))
    check = await checked(inference, monitor.name)
    assert check.reason.code == "ENDPOINT_NOT_FOUND"
    assert (await shown(inference, monitor.name)).state == domain.FAILED


async def test_a_schedule_rests_and_goes_on(inference: Inference, data: Data) -> None:
    monitor = await made(inference, "resting", cron="0 6 * * *")

    async def update(**values: Any) -> pb.Monitor:
        request = pb.UpdateMonitorRequest(
            monitor=pb.Monitor(name=monitor.name, **values), update_mask=FieldMask(paths=list(values))
        )
        found: pb.Monitor = await inference.monitors.UpdateMonitor(request)
        return found

    paused = await update(paused=True)
    assert not paused.HasField("next_check_time")
    assert not paused.upcoming_check_times
    resumed = await update(paused=False, cron="30 7 * * 1-5", time_zone="Asia/Tokyo")
    due = resumed.next_check_time.ToDatetime(UTC)
    assert (due.hour, due.minute) == (22, 30)
    assert (await update(thresholds=[])).thresholds[0].threshold == 0.2
    same = await update(description="")
    assert same.revision == (await update(description="")).revision
    stale = pb.UpdateMonitorRequest(
        monitor=pb.Monitor(name=monitor.name, min_rows=5),
        update_mask=FieldMask(paths=["min_rows"]),
        etag=str(monitor.revision),
    )
    assert await reason_of(inference.monitors.UpdateMonitor(stale)) == "REVISION_CHANGED"
    stale.update_mask.paths[:] = ["endpoint"]
    assert await reason_of(inference.monitors.UpdateMonitor(stale)) == "INVALID_UPDATE_MASK"


async def test_a_namesake_of_a_deleted_monitor_begins_anew(inference: Inference, data: Data) -> None:
    monitor = await made(inference, "namesake", description="the first")
    first = await checked(inference, monitor.name)
    deleted = await inference.monitors.DeleteMonitor(pb.DeleteMonitorRequest(name=monitor.name))
    for call in (
        inference.monitors.GetMonitor(pb.GetMonitorRequest(name=monitor.name)),
        inference.monitors.GetMonitorCheck(pb.GetMonitorCheckRequest(name=first.name)),
        inference.monitors.CheckMonitor(pb.CheckMonitorRequest(name=monitor.name)),
        inference.monitors.DeleteMonitor(pb.DeleteMonitorRequest(name=monitor.name)),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as missing:
            await call
        assert missing.value.code() == grpc.StatusCode.NOT_FOUND
    new = await inference.monitors.CreateMonitor(monitor_request(monitor.endpoint, "namesake"))
    assert (new.description, new.check_count, new.revision) == ("", 0, deleted.revision + 1)
    assert (await checked(inference, new.name)).name.endswith("/checks/2")
    assert (
        await reason_of(inference.monitors.CreateMonitor(monitor_request(monitor.endpoint, "namesake")))
        == "ALREADY_EXISTS"
    )


async def test_what_was_due_meanwhile_is_checked_once(
    inference: Inference, data: Data, journal: Journal
) -> None:
    monitor = await made(inference, "due", cron="0 0 1 * *")
    servers = inference.secrets.servers
    database = Database(servers.mongodb_uri, inference.bus.names.namespace, "inference")
    # As if the service had been away for months.
    missed = {"$set": {"next_check_time": datetime(2026, 3, 1, tzinfo=UTC)}}
    await database.raw["monitors"].update_one({"_id": monitor.name}, missed)
    # Other processes look at the same moment; any change has the service look.
    others = [MonitorStore(database).begin_due(monitor.name) for _ in range(5)]
    await asyncio.gather(inference.create_endpoint("due-too"), *others)
    database.close()
    started = await journal.next("monitor.check_started")
    assert started["data"]["reason"] == {
        "code": "SCHEDULED",
        "message": "Check 1. Was due at 2026-03-01T00:00:00Z.",
    }
    check = await ended(inference, f"{monitor.name}/checks/1")
    assert check.creator == "services/inference"
    found = await shown(inference, monitor.name)
    assert found.check_count == 1
    assert found.next_check_time.ToDatetime(UTC) > datetime.now(UTC)


async def test_a_check_goes_on_at_once_when_the_service_was_stopped(
    unstarted: Inference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(domain, "MAX_WAITING", 2)
    async with Data(unstarted).run() as data:
        async with unstarted.run():
            monitor = await made(unstarted, "stopped")
            await data.collect(monitor.endpoint, 200)
            data.open.clear()
            begin = pb.CheckMonitorRequest(name=monitor.name)
            first, second = [await unstarted.monitors.CheckMonitor(begin) for _ in range(2)]
            assert await reason_of(unstarted.monitors.CheckMonitor(begin)) == "TOO_MANY_CHECKS"
            async with asyncio.timeout(60):
                await data.asked.wait()
        data.open.set()
        async with unstarted.run():
            for check in (first, second):
                assert (await ended(unstarted, check.name)).found == domain.OK


async def test_slow_checks_of_a_workspace_do_not_hold_up_those_of_another(
    inference: Inference, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = await made(inference, "slow")
    await data.collect(monitor.endpoint, 200)
    data.open.clear()
    begin = pb.CheckMonitorRequest(name=monitor.name)
    slow = [await inference.monitors.CheckMonitor(begin) for _ in range(2)]
    async with asyncio.timeout(60):
        await data.asked.wait()

    monkeypatch.setattr(inference.others, "known", {*inference.others.known, "workspaces/other"})
    endpoint = await inference.stub.CreateEndpoint(
        endpoints_pb2.CreateEndpointRequest(parent="workspaces/other", endpoint_id="quick")
    )
    request = monitor_request(endpoint.name, "quick", baseline="workspaces/other/datasets/a/versions/1")
    request.parent = "workspaces/other"
    quick = await inference.monitors.CreateMonitor(request)
    assert (await checked(inference, quick.name)).found == domain.NO_DATA
    states = {
        (await inference.monitors.GetMonitorCheck(pb.GetMonitorCheckRequest(name=check.name))).state
        for check in slow
    }
    assert states == {domain.RUNNING}
    data.open.set()
    for check in slow:
        assert (await ended(inference, check.name)).found == domain.OK


async def test_a_workspace_has_so_many_monitors(
    inference: Inference, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tests of this file share a workspace.
    others = await inference.monitors.ListMonitors(pb.ListMonitorsRequest(parent=WORKSPACE))
    monkeypatch.setattr(domain, "MAX_MONITORS", len(others.monitors) + 2)
    first = await made(inference, "first")
    last = monitor_request(first.endpoint, "last")
    last.request_id = "last"
    made_last = await inference.monitors.CreateMonitor(last)
    more = monitor_request(first.endpoint, "more")
    for dry in (True, False):
        more.validate_only = dry
        assert await reason_of(inference.monitors.CreateMonitor(more)) == "TOO_MANY_MONITORS"
    assert await inference.monitors.CreateMonitor(last) == made_last, "a repeated request makes no other"
    again = inference.monitors.CreateMonitor(monitor_request(first.endpoint, "first"))
    assert await reason_of(again) == "ALREADY_EXISTS"
    await inference.monitors.DeleteMonitor(pb.DeleteMonitorRequest(name=first.name))
    assert (await inference.monitors.CreateMonitor(more)).name.endswith("/more")


async def test_old_checks_are_forgotten_but_the_one_that_is_shown(
    inference: Inference, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(domain, "KEPT_CHECKS", 2)
    monitor = await made(inference, "forgetful")
    newest = await checked(inference, monitor.name)
    end = Timestamp()
    end.FromDatetime(datetime.now(UTC) - timedelta(days=2))
    older = [await checked(inference, monitor.name, end_time=end) for _ in range(4)]
    request = pb.ListMonitorChecksRequest(parent=monitor.name)
    kept = [check.name for check in (await inference.monitors.ListMonitorChecks(request)).checks]
    assert kept == [older[3].name, older[2].name, newest.name]
