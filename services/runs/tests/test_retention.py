"""Removing runs: what is counted, what goes, what stays, and kills in between."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from services.runs.tests.support import (
    Client,
    Platform,
    eventually,
    metrics,
    points,
    record_of,
    records,
    refused,
    submit,
    text,
)
from stellwerk_inference.collected.domain import Place
from stellwerk_inference.collected.store import CollectedStore
from stellwerk_platform.errors import Unavailable
from stellwerk_platform.journal import Fact, entry
from stellwerk_platform.mongo import Database
from stellwerk_protos.common.v1.common_pb2 import File
from stellwerk_protos.compute.v1.computes_pb2 import ALLOCATION_STATE_SUCCEEDED
from stellwerk_protos.inference.v1.collections_pb2 import CollectedFile
from stellwerk_protos.registry.v1 import blobs_pb2, blobs_pb2_grpc
from stellwerk_protos.registry.v1.models_pb2 import ModelVersion
from stellwerk_protos.runs.v1 import artifacts_pb2, logs_pb2, metrics_pb2, retention_pb2, runs_pb2
from stellwerk_protos.runs.v1.snapshots_pb2 import CreateSnapshotRequest, GetSnapshotRequest
from stellwerk_registry.blobs.holders import CollectedData
from stellwerk_runs.retention.domain import Ended, let_go

NOW = datetime(2026, 6, 1, tzinfo=UTC)


@asynccontextmanager
async def database(platform: Platform) -> AsyncIterator[Any]:
    """The service's own database."""
    found = Database(platform.settings.mongodb_uri, platform.settings.namespace, "runs")
    try:
        yield found.raw
    finally:
        found.close()


async def until_settled(platform: Platform, workspace: str) -> None:
    """Returns once no blob or snapshot of the workspace waits to be removed."""
    where = {"_id": {"$gt": f"{workspace}/", "$lt": f"{workspace}0"}}
    async with database(platform) as raw:

        async def settled() -> bool:
            found = [await raw[name].find_one(where) for name in ("blob_releases", "snapshot_releases")]
            return found == [None, None]

        await eventually(settled)


async def is_there(platform: Platform, workspace: str, file: File) -> bool:
    """Whether the blob can be downloaded."""
    stub = blobs_pb2_grpc.BlobServiceStub(platform.registry)
    request = blobs_pb2.PrepareDownloadsRequest(parent=workspace, sha256=[file.sha256])
    try:
        await stub.PrepareDownloads(request)
    except Exception:
        return False
    return True


async def finished(platform: Platform, workspace: str, *files: File, **fields: object) -> str:
    """A run that logged something and has ended."""
    run = (await platform.client.runs.CreateRun(submit(workspace, **fields))).name
    await platform.client.append(
        metrics(run, "loss", points(range(100))), text(run, b"x" * 1_000), records(run, record_of("table"))
    )
    if files:
        await platform.client.artifacts.CreateArtifacts(
            artifacts_pb2.CreateArtifactsRequest(parent=run, files=files)
        )
    await platform.end(run, ALLOCATION_STATE_SUCCEEDED, "succeeded")
    # Reads of a run that is over wait for its last words.
    await platform.client.metrics.ListMetrics(metrics_pb2.ListMetricsRequest(parent=run))
    await platform.client.logs.ListLogs(logs_pb2.ListLogsRequest(parent=run))
    await platform.client.metrics.ListRecords(metrics_pb2.ListRecordsRequest(parent=run))
    return run


async def left_of(platform: Platform, run: str) -> list[str]:
    """The collections that still say something of a run, but for the mark and the closed heads."""
    async with database(platform) as raw:
        names = set(await raw.list_collection_names()) - {"removed_runs", "ingest_heads", "journal_outbox"}
        where = {"$or": [{"_id": run}, {"run": run}, {"_id": {"$gt": f"{run}#", "$lt": f"{run}$"}}]}
        return [name for name in sorted(names) if await raw[name].find_one(where)]


async def remove(client: Client, *runs: str, **fields: object) -> retention_pb2.RemovalReport:
    return await client.retention.RemoveRuns(
        retention_pb2.RemoveRunsRequest(
            parent="/".join(runs[0].split("/")[:2]),
            runs=runs,
            **fields,  # type: ignore[arg-type]  # the test's own fields
        )
    )


async def test_what_a_deployment_collected_stays_when_a_run_had_it_too(
    platform: Platform, client: Client
) -> None:
    workspace = await platform.workspace()
    files = [await platform.upload(workspace, f"{name}.jsonl", name.encode()) for name in ("asked", "own")]
    settings = platform.settings
    database = Database(settings.mongodb_uri, settings.namespace, "inference")
    hour = datetime(2026, 11, 23, 8, tzinfo=UTC)
    path = "digits/blue/request/2026/11/23/08/r1.jsonl"
    collected = CollectedFile(file=File(path=path, sha256=files[0].sha256, size_bytes=files[0].size_bytes))
    store = CollectedStore(database)
    await store.record(f"{workspace}/endpoints/digits", [collected], [Place("blue", "request", hour)])
    database.close()
    await remove(client, await finished(platform, workspace, *files))
    await until_settled(platform, workspace)
    assert [await is_there(platform, workspace, file) for file in files] == [True, False]


async def test_a_removed_run_leaves_nothing_and_takes_nothing_of_others(
    platform: Platform, client: Client
) -> None:
    workspace = await platform.workspace()
    alone, shared, code, common = [
        await platform.upload(workspace, name, f"{workspace} {name}".encode())
        for name in ("alone.bin", "shared.bin", "code.py", "common.py")
    ]
    snapshots = [
        await client.snapshots.CreateSnapshot(CreateSnapshotRequest(parent=workspace, files=files))
        for files in ([code, common], [common])
    ]
    gone = await finished(platform, workspace, alone, shared, snapshot=snapshots[0].name)
    stays = await finished(platform, workspace, shared, snapshot=snapshots[1].name)
    preview = await remove(client, gone, validate_only=True)
    assert (list(preview.runs), preview.run_count, preview.validate_only) == ([gone], 1, True)
    assert (preview.point_count, preview.log_bytes) == (100, 1_000)
    assert (preview.blob_count, preview.blob_bytes) == (2, alone.size_bytes + code.size_bytes)
    assert await client.runs.GetRun(runs_pb2.GetRunRequest(name=gone))
    report = await remove(client, gone)
    preview.validate_only = False
    assert report == preview
    assert (await refused(client.runs.GetRun(runs_pb2.GetRunRequest(name=gone)))).reason == "RUN_NOT_FOUND"
    assert (await refused(client.append(text(gone, b"late", 1_000)))).reason == "RUN_NOT_FOUND"
    await until_settled(platform, workspace)
    assert await left_of(platform, gone) == []
    assert [await is_there(platform, workspace, file) for file in (alone, shared, code, common)] == [
        False,
        True,
        False,
        True,
    ]
    request = GetSnapshotRequest(name=snapshots[0].name)
    assert (await refused(client.snapshots.GetSnapshot(request))).reason == "SNAPSHOT_NOT_FOUND"
    assert await client.snapshots.GetSnapshot(GetSnapshotRequest(name=snapshots[1].name)) == snapshots[1]
    asked = retention_pb2.ListReferencedBlobsRequest(
        parent=workspace, sha256=[file.sha256 for file in (alone, shared, code, common)]
    )
    async with platform.as_service() as service:
        answer = await service.retention.ListReferencedBlobs(asked)
    assert set(answer.sha256) == {shared.sha256, common.sha256}
    assert (await refused(client.retention.ListReferencedBlobs(asked))).reason == "PERMISSION_DENIED"
    listed = await client.metrics.ListMetrics(metrics_pb2.ListMetricsRequest(parent=stays))
    assert [metric.count for metric in listed.metrics] == [100]
    # Again: it is gone already, and its name stays taken.
    assert (await remove(client, gone)).run_count == 0
    again = submit(workspace, run_id=gone.rsplit("/", 1)[1])
    assert (await refused(client.runs.CreateRun(again))).reason == "RUN_REMOVED"
    # What was removed can be uploaded again.
    assert await platform.upload(workspace, "alone.bin", f"{workspace} alone.bin".encode()) == alone
    assert await is_there(platform, workspace, alone)


@pytest.mark.timeout(60)
async def test_a_run_goes_while_nobody_says_who_needs_its_blobs(
    platform: Platform, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = await platform.workspace()
    file = await platform.upload(workspace, "own.bin", workspace.encode())
    run = await finished(platform, workspace, file)
    asked = asyncio.Event()

    async def is_away(self: CollectedData, workspace: str, digests: Sequence[str]) -> set[str]:
        if digests:
            asked.set()
        raise Unavailable("UPSTREAM_UNAVAILABLE", "inference does not answer.")

    with monkeypatch.context() as patched:
        patched.setattr(CollectedData, "referred", is_away)
        preview = await remove(client, run, validate_only=True)
        assert (preview.run_count, preview.blob_count, preview.blobs_uncounted) == (1, 0, True)
        assert (await remove(client, run)).blobs_uncounted
        assert (await refused(client.runs.GetRun(runs_pb2.GetRunRequest(name=run)))).reason == "RUN_NOT_FOUND"
        assert await left_of(platform, run) == []
        asked.clear()
        await asked.wait()
        assert await is_there(platform, workspace, file), "somebody may need it"
    await until_settled(platform, workspace)
    assert not await is_there(platform, workspace, file)


async def test_what_may_not_go_is_refused(platform: Platform, client: Client) -> None:
    workspace = await platform.workspace()
    going = (await platform.run(workspace)).name
    assert (await refused(remove(client, going))).reason == "RUN_NOT_OVER"
    assert (await refused(remove(client, going + "x"))).reason == "RUN_NOT_FOUND"
    elsewhere = retention_pb2.RemoveRunsRequest(parent=workspace, runs=["workspaces/other/runs/r"])
    assert (await refused(client.retention.RemoveRuns(elsewhere))).reason == "PERMISSION_DENIED"
    parent = await platform.run(workspace)
    child = await finished(platform, workspace, parent_run=parent.name)
    await platform.end(parent.name, ALLOCATION_STATE_SUCCEEDED, "succeeded")
    # A model that came from the child holds it, and with it its parent.
    model = ModelVersion(name=f"{workspace}/models/m/versions/1", revision=1, run=child)
    await publish(platform, "registry", model)
    async with database(platform) as raw:

        async def held() -> bool:
            return await raw["holds"].find_one({"target": child}) is not None

        await eventually(held)
    error = await refused(remove(client, parent.name))
    assert (error.reason, error.metadata["holder"]) == ("RUN_IN_USE", model.name)


async def publish(platform: Platform, service: str, resource: Message) -> None:
    """An event as another service publishes it."""
    event = entry(platform.bus.names.namespace, service, resource, Fact("created", "REQUESTED", actor="test"))
    await platform.bus.publish(event.subject, event.body, {"Nats-Msg-Id": event.id})


async def test_a_tree_goes_with_its_root(platform: Platform, client: Client) -> None:
    workspace = await platform.workspace()
    parent = (await platform.run(workspace)).name
    child = await finished(platform, workspace, parent_run=parent)
    await platform.end(parent, ALLOCATION_STATE_SUCCEEDED, "succeeded")
    report = await remove(client, parent)
    assert (list(report.runs), report.point_count) == ([parent, child], 100)
    assert await left_of(platform, parent) == await left_of(platform, child) == []


async def test_rules_let_old_runs_go(platform: Platform, client: Client) -> None:
    workspace = await platform.workspace()
    runs = [await finished(platform, workspace) for _ in range(3)]
    experiment = f"{workspace}/experiments/Digits.v1"
    set_rule = retention_pb2.SetRetentionRuleRequest(parent=experiment)
    get_rule = retention_pb2.GetRetentionRuleRequest(name=f"{experiment}/retentionRule")
    everything = retention_pb2.RemoveRunsRequest(parent=workspace, validate_only=True)
    assert (await client.retention.GetRetentionRule(get_rule)).revision == 0
    set_rule.rule.keep_days = -1
    assert (await refused(client.retention.SetRetentionRule(set_rule))).reason == "INVALID_RETENTION_RULE"
    set_rule.rule.keep_days = 0
    assert (await client.retention.SetRetentionRule(set_rule)).revision == 1
    assert (await client.retention.RemoveRuns(everything)).run_count == 0
    set_rule.rule.keep_last = 1
    rule = await client.retention.SetRetentionRule(set_rule)
    assert (rule.revision, await client.retention.GetRetentionRule(get_rule)) == (2, rule)
    assert list((await client.retention.RemoveRuns(everything)).runs) == runs[:2]
    everything.validate_only = False
    everything.experiment = experiment
    assert (await client.retention.RemoveRuns(everything)).run_count == 2
    left = await client.runs.ListRuns(runs_pb2.ListRunsRequest(parent=workspace))
    assert [run.name for run in left.runs] == runs[2:]
    set_rule.parent = f"{workspace}/experiments/none"
    assert (await refused(client.retention.SetRetentionRule(set_rule))).reason == "EXPERIMENT_NOT_FOUND"


ENDED = st.builds(
    lambda number, made, took, archived: Ended(
        f"r{number}", NOW - timedelta(days=made), NOW - timedelta(days=made - min(took, made)), archived
    ),
    st.integers(0, 999),
    st.integers(0, 60),
    st.integers(0, 10),
    st.booleans(),
)


@given(
    st.lists(ENDED, max_size=20, unique_by=lambda run: run.name),
    st.integers(0, 60),
    st.integers(0, 10),
    st.booleans(),
)
def test_a_rule_lets_go_what_each_of_its_conditions_lets_go(
    runs: list[Ended], keep_days: int, keep_last: int, archived_only: bool
) -> None:
    rule = retention_pb2.RetentionRule(keep_days=keep_days, keep_last=keep_last, archived_only=archived_only)
    free = set(let_go(rule, runs, NOW))
    if not (keep_days or keep_last or archived_only):
        assert not free
        return
    newest = sorted(runs, key=lambda run: (run.create_time, run.name))[::-1][:keep_last]
    for run in runs:
        old = not keep_days or NOW - run.end_time > timedelta(days=keep_days)
        assert (run.name in free) == (old and run not in newest and (run.archived or not archived_only))
