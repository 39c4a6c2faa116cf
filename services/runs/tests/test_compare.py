"""Searching and comparing runs through the service, as users do."""

import math
from collections.abc import Sequence

from services.runs.tests.support import Client, Platform, eventually, metrics, points, refused, submit
from services.runs.tests.test_lifecycle import interactive
from stellwerk_protos.compute.v1.workloads_pb2 import Input
from stellwerk_protos.registry.v1 import (
    datasets_pb2,
    datasets_pb2_grpc,
    environments_pb2,
    environments_pb2_grpc,
)
from stellwerk_protos.runs.v1 import ingest_pb2, snapshots_pb2
from stellwerk_protos.runs.v1 import runs_pb2 as pb

PAGE = 2
# All that `log` says; each comes by a way of its own.
LOGGED = "metrics.val.loss IS NOT NULL AND params.lr IS NOT NULL AND tags.stage IS NOT NULL"


async def searched(
    client: Client, workspace: str, text: str, order: str = "", **more: object
) -> list[pb.FoundRun]:
    """All that a search finds, page by page."""
    found: list[pb.FoundRun] = []
    token = ""
    while True:
        answer = await client.runs.SearchRuns(
            pb.SearchRunsRequest(
                parent=workspace,
                filter=text,
                order_by=order,
                page_size=PAGE,
                page_token=token,
                **more,  # type: ignore[arg-type]
            )
        )
        found += answer.runs
        token = answer.next_page_token
        if not token:
            return found


async def until_found(client: Client, workspace: str, text: str, count: int) -> None:
    """Returns once a search finds so many runs: metrics come within about a second, and nothing says when."""

    async def found() -> bool:
        return len(await searched(client, workspace, text)) == count

    await eventually(found)


def told(
    run: str, *records: tuple[str, str], kind: "ingest_pb2.RecordKind.ValueType"
) -> ingest_pb2.AppendRequest:
    """An append of parameters or tags."""
    batch = ingest_pb2.RecordBatch(source=f"1-{kind}", first_sequence=0)
    for name, value in records:
        batch.records.add(name=name, value=value, kind=kind, time=1)
    return ingest_pb2.AppendRequest(run=run, records=batch)


async def log(client: Client, run: str, lr: str, values: Sequence[float]) -> None:
    """What a script says."""
    await client.append(
        told(run, ("lr", lr), ("model", "mlp"), kind=ingest_pb2.RECORD_KIND_PARAM),
        told(run, ("stage", "dev"), kind=ingest_pb2.RECORD_KIND_TAG),
        metrics(run, "val.loss", points(values)),
    )


async def test_what_runs_log_is_found_and_sorted_by(platform: Platform, client: Client) -> None:
    workspace = await platform.workspace()
    runs = [(await client.runs.CreateRun(interactive(workspace))).name for _ in range(4)]
    lasts = [0.25, math.nan, 0.125, math.inf]
    for number, (run, last) in enumerate(zip(runs, lasts, strict=True)):
        await log(client, run, f"1e-{number}", [9.0, last])
    await until_found(client, workspace, LOGGED, 4)
    by_loss = await searched(client, workspace, "", "metrics.val.loss", metrics=["val.loss", "none"])
    assert [found.run.name for found in by_loss] == [runs[n] for n in (2, 0, 3, 1)]
    assert [found.metrics["val.loss"] for found in by_loss][:3] == [0.125, 0.25, math.inf]
    assert math.isnan(by_loss[3].metrics["val.loss"])
    assert "none" not in by_loss[0].metrics
    some = await searched(
        client, workspace, "params.lr < 0.5 AND tags.stage = 'dev' AND metrics.val.loss < 1"
    )
    assert [found.run.name for found in some] == [runs[2]]
    assert dict(some[0].run.params) == {"lr": "1e-2", "model": "mlp"}
    await client.append(metrics(runs[2], "val.loss", points([0.5]), first=2))
    await until_found(client, workspace, "metrics.val.loss = 0.5", 1)


async def test_a_search_that_cannot_be_says_why(platform: Platform, client: Client) -> None:
    workspace = await platform.workspace()
    for _ in range(2):
        await client.runs.CreateRun(interactive(workspace))
    request = pb.SearchRunsRequest(parent=workspace, filter="metrics.a >", page_size=1)
    error = await refused(client.runs.SearchRuns(request))
    assert (error.reason, error.metadata["position"]) == ("INVALID_FILTER", "11")
    request.filter = "kind = 'interactive'"
    request.page_token = (await client.runs.SearchRuns(request)).next_page_token
    assert request.page_token
    request.order_by = "name"
    assert (await refused(client.runs.SearchRuns(request))).reason == "INVALID_PAGE_TOKEN"
    request.order_by, request.filter = "", "kind = 'command'"
    assert (await refused(client.runs.SearchRuns(request))).reason == "INVALID_PAGE_TOKEN"
    request.parent = "workspaces/nowhere-at-all"
    assert (await refused(client.runs.SearchRuns(request))).reason == "PERMISSION_DENIED"


async def submitted(platform: Platform, client: Client, workspace: str, number: int) -> pb.Run:
    """A run with code, environment and data of its own."""
    same = await platform.upload(workspace, "util.py", b"x = 1\n")
    own = await platform.upload(workspace, "train.py", f"seed = {number}\n".encode())
    snapshot = await client.snapshots.CreateSnapshot(
        snapshots_pb2.CreateSnapshotRequest(parent=workspace, files=[same, own])
    )
    environment = await environments_pb2_grpc.EnvironmentServiceStub(
        platform.registry
    ).CreateEnvironmentVersion(
        environments_pb2.CreateEnvironmentVersionRequest(
            parent=f"{workspace}/environments/sklearn", packages=["numpy", f"scikit-learn==1.{number}"]
        )
    )
    dataset = await datasets_pb2_grpc.DatasetServiceStub(platform.registry).CreateDatasetVersion(
        datasets_pb2.CreateDatasetVersionRequest(parent=f"{workspace}/datasets/digits", files=[own])
    )
    return await client.runs.CreateRun(
        submit(
            workspace,
            snapshot=snapshot.name,
            environment=environment.name,
            inputs=[Input(name="digits", resource=dataset.name)],
            tags={"owner": "ada"},
        )
    )


async def test_a_comparison_shows_what_differs(platform: Platform, client: Client) -> None:
    workspace = await platform.workspace()
    runs = [await submitted(platform, client, workspace, number) for number in (4, 5)]
    for number, run in enumerate(runs):
        await log(client, run.name, f"1e-{number}", [0.5 + number])
    await until_found(client, workspace, LOGGED, 2)
    request = pb.CompareRunsRequest(parent=workspace, runs=[run.name for run in runs])
    answer = await client.runs.CompareRuns(request)
    assert [run.name for run in answer.runs] == list(request.runs)
    rows = {(row.group, row.key): list(row.values) for row in answer.rows}
    assert rows["params", "lr"] == ["1e-0", "1e-1"]
    assert rows["metrics", "val.loss"] == ["0.5", "1.5"]
    assert rows["environment", "scikit-learn"] == ["==1.4", "==1.5"]
    assert rows["environment", "(environment)"] == ["sklearn/1", "sklearn/2"]
    assert [text.split()[0] for text in rows["data", "digits"]] == ["digits/1", "digits/2"]
    assert len(set(rows["data", "digits"])) == len(set(rows["code", "train.py"])) == 2
    for equal in (("params", "model"), ("tags", "owner"), ("code", "util.py"), ("environment", "numpy")):
        assert equal not in rows
    request.include_equal = True
    answer = await client.runs.CompareRuns(request)
    rows = {(row.group, row.key): list(row.values) for row in answer.rows if row.equal}
    assert rows["tags", "owner"] == ["ada", "ada"]
    assert rows["environment", "numpy"] == ["any", "any"]


async def test_a_comparison_needs_runs_that_are_there(platform: Platform, client: Client) -> None:
    run = await platform.run()
    workspace = run.name.rsplit("/", 2)[0]
    request = pb.CompareRunsRequest(parent=workspace, runs=[run.name])
    assert (await refused(client.runs.CompareRuns(request))).reason == "INVALID_RUN_COUNT"
    request.runs.append(f"{workspace}/runs/nobody")
    assert (await refused(client.runs.CompareRuns(request))).reason == "RUN_NOT_FOUND"
    request.runs[1] = "workspaces/other/runs/r"
    assert (await refused(client.runs.CompareRuns(request))).reason == "PERMISSION_DENIED"
