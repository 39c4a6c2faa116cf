"""The activity log: who did or tried what, listed, exported, and filled again when it is dropped."""

import asyncio
import csv
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import pytest

from services.telemetry.tests.support import Telemetry, reason_of, run, until
from stellwerk_platform import activity
from stellwerk_platform.errors import PermissionDenied
from stellwerk_platform.mongo import Database
from stellwerk_protos.telemetry.v1 import activity_pb2 as pb
from stellwerk_protos.telemetry.v1 import activity_pb2_grpc

DENIED = pb.ACTIVITY_RESULT_DENIED


@asynccontextmanager
async def stub_of(telemetry: Telemetry) -> AsyncIterator[Any]:
    async with telemetry.channel() as channel:
        yield activity_pb2_grpc.ActivityServiceStub(channel)


async def listed(telemetry: Telemetry, count: int, parent: str, **fields: Any) -> list[pb.Activity]:
    """All activities of a query, newest first, once there are so many."""

    async def probe() -> list[pb.Activity] | None:
        found: list[pb.Activity] = []
        token = ""
        while True:
            answer = await stub.ListActivities(
                pb.ListActivitiesRequest(
                    parent=parent, filter=pb.ActivityFilter(**fields), page_size=3, page_token=token
                )
            )
            found += answer.activities
            token = answer.next_page_token
            if not token:
                return found if len(found) >= count else None

    async with stub_of(telemetry) as stub:
        return await until(probe)


async def report(telemetry: Telemetry, *denied: dict[str, str], reason: str = "PERMISSION_DENIED") -> None:
    """Has what was refused reported as a service does."""
    reporter = activity.Reporter("runs")
    token = activity._current.set(reporter)
    for fields in denied:
        activity.denied("RunService/GetRun", PermissionDenied(reason, "No."), **fields)
    activity._current.reset(token)
    task = asyncio.create_task(reporter.run(telemetry.bus))
    await asyncio.sleep(0)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def exported(telemetry: Telemetry, parent: str, kind: "pb.ExportFormat.ValueType") -> str:
    async with stub_of(telemetry) as stub:
        request = pb.ExportActivitiesRequest(parent=parent, format=kind)
        return b"".join([piece.content async for piece in stub.ExportActivities(request)]).decode()


async def test_changes_and_refusals_are_in_one_log(telemetry: Telemetry) -> None:
    await telemetry.publish("log-both", 4)
    await report(
        telemetry,
        {"actor": "users/eve", "resource": "workspaces/log-both/runs/fox", "address": "10.0.0.7"},
        {"actor": "users/eve", "resource": "workspaces/log-both/runs/fox/x/y", "address": "10.0.0.8"},
        {"resource": "workspaces/another"},
    )
    found = await listed(telemetry, 6, "workspaces/log-both")
    assert [item.id for item in found] == sorted((item.id for item in found), reverse=True)
    assert len(found) == 6
    done = await listed(telemetry, 4, "workspaces/log-both", result=pb.ACTIVITY_RESULT_DONE)
    assert {(item.action, item.actor) for item in done} == {("stellwerk.telemetry.workspace.tested.v1", "")}
    denied = await listed(telemetry, 2, "workspaces/log-both", result=DENIED)
    assert {(item.address, item.reason) for item in denied} == {
        ("10.0.0.7", "PERMISSION_DENIED"),
        ("10.0.0.8", "PERMISSION_DENIED"),
    }
    for fields, count in (
        ({"actor": "users/eve"}, 2),
        ({"action": "GetRun"}, 2),
        ({"resource": "workspaces/log-both/runs/fox"}, 2),
        ({"resource": "workspaces/log-both/runs/fox/x/y"}, 1),
        ({"resource": "workspaces/log-both"}, 6),
        ({"actor": "users/eve", "action": "GetRun", "start_time": denied[1].time}, 2),
    ):
        assert len(await listed(telemetry, count, "workspaces/log-both", **fields)) == count
    async with stub_of(telemetry) as stub:
        none = pb.ActivityFilter(end_time=found[-1].time)
        request = pb.ListActivitiesRequest(parent="workspaces/log-both", filter=none)
        assert not (await stub.ListActivities(request)).activities


async def test_what_lies_in_no_workspace_is_the_platform_s(telemetry: Telemetry) -> None:
    await report(telemetry, {"actor": "users/mallory", "resource": "users/alice"}, {"actor": "users/mallory"})
    found = await listed(telemetry, 2, "", actor="users/mallory")
    assert {item.resource for item in found} == {"", "users/alice"}


async def test_the_export_is_what_a_spreadsheet_and_a_program_can_read(telemetry: Telemetry) -> None:
    hostile = "=cmd|'/c calc'!A0,\"x\""
    await telemetry.publish("log-export", 600)
    await report(telemetry, {"actor": hostile, "resource": "workspaces/log-export/runs/fox"})
    await listed(telemetry, 601, "workspaces/log-export")
    lines = (await exported(telemetry, "workspaces/log-export", pb.EXPORT_FORMAT_JSON_LINES)).splitlines()
    objects = [json.loads(line) for line in lines]
    assert len(objects) == 601
    assert [item["id"] for item in objects] == sorted(item["id"] for item in objects)
    text = await exported(telemetry, "workspaces/log-export", pb.EXPORT_FORMAT_CSV)
    assert text.count("\r\n") == 602, "RFC 4180 ends lines with CRLF"
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["id"] for row in rows] == [item["id"] for item in objects]
    assert [row["actor"] for row in rows if row["result"] == "DENIED"] == ["'" + hostile]
    assert (await exported(telemetry, "workspaces/log-none", pb.EXPORT_FORMAT_CSV)).startswith("time,actor,")


async def test_a_dropped_log_is_filled_again_and_nothing_is_in_it_twice(telemetry: Telemetry) -> None:
    await telemetry.publish("log-again", 3)
    await report(telemetry, {"actor": "users/eve", "resource": "workspaces/log-again/runs/fox"})
    before = await listed(telemetry, 4, "workspaces/log-again")
    database = Database(telemetry.secrets.servers.mongodb_uri, telemetry.bus.names.namespace, "telemetry")
    try:
        await database.raw.drop_collection("activities")
    finally:
        database.close()
    async with run(telemetry.secrets, telemetry.bus) as restarted:
        assert await listed(restarted, 4, "workspaces/log-again") == before


@pytest.mark.parametrize(
    ("parent", "fields", "reason"),
    [
        ("demo", {}, "INVALID_NAME"),
        ("workspaces/log-bad", {"resource": "x"}, "INVALID_NAME"),
        ("workspaces/log-bad", {"actor": "x" * 501}, "INVALID_FILTER"),
        ("workspaces/log-bad", {"action": "\0"}, "INVALID_FILTER"),
    ],
)
async def test_bad_queries_are_refused(
    telemetry: Telemetry, parent: str, fields: dict[str, Any], reason: str
) -> None:
    request = pb.ListActivitiesRequest(parent=parent, filter=pb.ActivityFilter(**fields))
    async with stub_of(telemetry) as stub:
        assert await reason_of(stub.ListActivities(request)) == reason


async def test_the_log_is_not_for_everybody(telemetry: Telemetry) -> None:
    async with telemetry.channel(telemetry.secrets.otlp_key) as channel:
        stub = activity_pb2_grpc.ActivityServiceStub(channel)
        for call in (
            stub.ListActivities(pb.ListActivitiesRequest(parent="workspaces/demo")),
            stub.ExportActivities(pb.ExportActivitiesRequest(parent="workspaces/demo")).read(),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
