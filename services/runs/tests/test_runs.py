"""Submitting, following and cancelling runs."""

import asyncio
import re

import pytest

from services.runs.tests.support import Client, Platform, refused, submit
from stellwerk_platform.documents import now
from stellwerk_protos.common.v1.common_pb2 import Phase, Reason
from stellwerk_protos.compute.v1 import computes_pb2 as compute
from stellwerk_protos.compute.v1.workloads_pb2 import Input
from stellwerk_protos.registry.v1 import environments_pb2, environments_pb2_grpc
from stellwerk_protos.runs.v1 import runs_pb2 as pb


async def test_a_submit_makes_run_and_experiment_and_is_queued(platform: Platform, client: Client) -> None:
    workspace = await platform.workspace()
    run = await client.runs.CreateRun(submit(workspace, tags={"lr": "0.1"}))
    assert re.fullmatch(rf"{workspace}/runs/[a-z]+-[a-z]+-[0-9a-z]{{6}}", run.name)
    assert (run.state, run.reason.code, run.revision) == (pb.RUN_STATE_STARTING, "SUBMITTED", 1)
    assert (run.creator, run.workload.grace.seconds, dict(run.tags)) == ("users/owner", 10, {"lr": "0.1"})
    queued = await platform.until(run.name, pb.RUN_STATE_QUEUED)
    assert queued.allocation.startswith(f"{workspace}/allocations/")
    assert queued.reason.code
    experiments = await client.runs.ListExperiments(pb.ListExperimentsRequest(parent=workspace))
    assert [experiment.name for experiment in experiments.experiments] == [run.experiment]


async def test_a_repeated_request_returns_the_first_run(platform: Platform, client: Client) -> None:
    request = submit(await platform.workspace(), request_id="submit-1")
    first, second = await asyncio.gather(client.runs.CreateRun(request), client.runs.CreateRun(request))
    third = await client.runs.CreateRun(request)
    assert first.name == second.name == third.name


async def test_runs_submitted_at_once_share_a_new_experiment(platform: Platform, client: Client) -> None:
    workspace = await platform.workspace()
    runs = await asyncio.gather(*(client.runs.CreateRun(submit(workspace)) for _ in range(8)))
    assert len({run.name for run in runs}) == 8
    found = await client.runs.ListRuns(
        pb.ListRunsRequest(parent=workspace, experiment=runs[0].experiment, page_size=5)
    )
    rest = await client.runs.ListRuns(
        pb.ListRunsRequest(
            parent=workspace,
            experiment=runs[0].experiment,
            page_size=5,
            page_token=found.next_page_token,
        )
    )
    listed = [*found.runs, *rest.runs]
    assert {run.name for run in listed} == {run.name for run in runs}
    assert [run.create_time.ToNanoseconds() for run in listed] == sorted(
        (run.create_time.ToNanoseconds() for run in listed), reverse=True
    )
    assert not rest.next_page_token


async def test_latest_becomes_a_number(platform: Platform, client: Client) -> None:
    workspace = await platform.workspace()
    parent = f"{workspace}/environments/sklearn"
    stub = environments_pb2_grpc.EnvironmentServiceStub(platform.registry)
    await stub.CreateEnvironmentVersion(
        environments_pb2.CreateEnvironmentVersionRequest(parent=parent, packages=["scikit-learn"])
    )
    run = await client.runs.CreateRun(submit(workspace, environment=f"{parent}/versions/latest"))
    assert run.workload.environment == f"{parent}/versions/1"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"run_id": "Not/valid"}, "INVALID_NAME"),
        ({"run_id": "ends-with."}, "INVALID_NAME"),
        ({"experiment": ""}, "EXPERIMENT_MISSING"),
        ({"experiment": "workspaces/another/experiments/e"}, "PERMISSION_DENIED"),
        ({"command": " "}, "INVALID_COMMAND"),
        ({"command": "x" * 70_000}, "INVALID_COMMAND"),
        ({"compute": "{w}/computes/moon"}, "COMPUTE_NOT_FOUND"),
        ({"snapshot": "{w}/snapshots/" + "0" * 64}, "SNAPSHOT_NOT_FOUND"),
        ({"environment": "{w}/environments/none/versions/latest"}, "ENVIRONMENT_VERSION_NOT_FOUND"),
        ({"tags": {str(n): "" for n in range(51)}}, "TOO_MANY_TAGS"),
        ({"variables": {"STELLWERK_RUN": "x"}}, "RESERVED_VARIABLE"),
        ({"variables": {"A B": "x"}}, "INVALID_VARIABLE"),
        ({"inputs": [Input(name="a.b", resource="x"), Input(name="a-b", resource="x")]}, "INVALID_INPUT"),
        (
            {"inputs": [Input(name="d", resource="{w}/datasets/none/versions/1")]},
            "DATASET_VERSION_NOT_FOUND",
        ),
    ],
)
async def test_a_bad_submit_names_what_is_wrong(
    platform: Platform, client: Client, fields: dict[str, object], reason: str
) -> None:
    workspace = await platform.workspace()
    filled = {k: v.replace("{w}", workspace) if isinstance(v, str) else v for k, v in fields.items()}
    request = submit(workspace, **filled)
    for item in request.inputs:
        item.resource = item.resource.replace("{w}", workspace)
    error = await refused(client.runs.CreateRun(request))
    assert (error.reason, bool(error.cure)) == (reason, True)
    assert not (await client.runs.ListRuns(pb.ListRunsRequest(parent=workspace))).runs


async def test_an_unknown_workspace_is_like_one_of_others(client: Client) -> None:
    error = await refused(client.runs.CreateRun(submit("workspaces/nowhere")))
    assert (error.reason, "nowhere" in error.message) == ("PERMISSION_DENIED", True)


async def test_a_taken_name_is_refused(platform: Platform, client: Client) -> None:
    run = await platform.run(run_id="mine")
    error = await refused(platform.run(run.name.split("/runs/")[0], run_id="mine"))
    assert error.reason == "ALREADY_EXISTS"


async def test_a_run_follows_its_allocation(platform: Platform, client: Client) -> None:
    run = await platform.run()
    queued = await platform.until(run.name, pb.RUN_STATE_QUEUED)
    begin = now()
    allocation = compute.Allocation(name=queued.allocation, owner=run.name, revision=10)
    allocation.state = compute.ALLOCATION_STATE_RUNNING
    allocation.reason.CopyFrom(Reason(code="COMMAND_STARTED", message="It runs."))
    allocation.phases.append(Phase(name="run_command", start_time=begin))
    allocation.start_time.CopyFrom(begin)
    await platform.report(allocation, "running")
    running = await platform.until(run.name, pb.RUN_STATE_RUNNING)
    assert (running.reason.code, running.start_time, len(running.phases)) == ("COMMAND_STARTED", begin, 1)

    # News that are older change nothing, whenever they come.
    stale = compute.Allocation(name=queued.allocation, owner=run.name, revision=9)
    stale.state = compute.ALLOCATION_STATE_FAILED
    await platform.report(stale, "failed")
    allocation.revision, allocation.exit_code = 12, 3
    allocation.state = compute.ALLOCATION_STATE_FAILED
    allocation.reason.CopyFrom(Reason(code="COMMAND_FAILED", message="Exit code 3.", cure="See its log."))
    await platform.report(allocation, "failed")
    failed = await platform.until(run.name, pb.RUN_STATE_FAILED)
    assert (failed.exit_code, failed.reason, failed.allocation_revision) == (3, allocation.reason, 12)
    assert failed.end_time.ToNanoseconds() >= failed.start_time.ToNanoseconds()


async def test_a_cancel_is_recorded_once_and_ends_in_canceled(platform: Platform, client: Client) -> None:
    run = await platform.run()
    await platform.until(run.name, pb.RUN_STATE_QUEUED)
    asked = await client.runs.CancelRun(pb.CancelRunRequest(name=run.name, message="wrong data"))
    assert asked.reason.code == "CANCEL_REQUESTED"
    assert "users/owner" in asked.reason.message
    assert "wrong data" in asked.reason.message
    # `compute` cancels what no node holds by itself.
    await platform.until(run.name, pb.RUN_STATE_CANCELED)
    error = await refused(client.runs.CancelRun(pb.CancelRunRequest(name=run.name)))
    assert error.reason == "RUN_ENDED"


async def test_what_does_not_exist_is_named(platform: Platform, client: Client) -> None:
    name = f"{await platform.workspace()}/runs/none"
    for call in (
        client.runs.GetRun(pb.GetRunRequest(name=name)),
        client.runs.CancelRun(pb.CancelRunRequest(name=name)),
        client.runs.WatchRun(pb.WatchRunRequest(name=name)).read(),
    ):
        assert (await refused(call)).reason == "RUN_NOT_FOUND"


async def test_pages_of_very_large_runs_end_before_an_answer_gets_too_large(
    platform: Platform, client: Client
) -> None:
    workspace = await platform.workspace()
    # Nearly as much as a run may have.
    variables = {f"V{number}": "x" * 32_000 for number in range(31)}
    requests = [submit(workspace, variables=variables) for _ in range(10)]
    created = {run.name for run in await asyncio.gather(*map(client.runs.CreateRun, requests))}
    found: list[str] = []
    request = pb.SearchRunsRequest(parent=workspace, page_size=1_000)
    while True:
        answer = await client.runs.SearchRuns(request)
        assert answer.ByteSize() < 9 * 1024 * 1024
        found += [item.run.name for item in answer.runs]
        request.page_token = answer.next_page_token
        if not request.page_token:
            break
    assert len(found) == len(set(found))
    assert set(found) == created
