"""The agent with real services: killed between any two steps, and finding its commands again."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration

from services.agent.tests.support import Node, running
from services.runs.tests.support import Platform, submit, values
from stellwerk_launcher.testing import Servers
from stellwerk_protos.registry.v1 import environments_pb2, environments_pb2_grpc
from stellwerk_protos.runs.v1 import artifacts_pb2, logs_pb2, runs_pb2, snapshots_pb2

SCRIPT = b"""
import os, pathlib, time
from stellwerk.run_context import current_run
run = current_run()
for step in range(20):
    print("step", step)
    run.log("loss", step / 2)
    time.sleep(0.01)
pathlib.Path("outputs").mkdir()
pathlib.Path("outputs/model.txt").write_text("weights")
"""
LOG = b"".join(b"step %d\n" % step for step in range(20))


@pytest_asyncio.fixture(scope="module")
async def node(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    async with running(servers, tmp_path_factory.mktemp("node")) as node:
        yield node


@pytest_asyncio.fixture(scope="module")
async def request_of_a_run(node: Node) -> runs_pb2.CreateRunRequest:
    """A run of the script above, in an environment without packages."""
    platform = node.platform
    workspace = await platform.workspace()
    file = await platform.upload(workspace, "train.py", SCRIPT)
    snapshot = await platform.client.snapshots.CreateSnapshot(
        snapshots_pb2.CreateSnapshotRequest(parent=workspace, files=[file])
    )
    environment = await environments_pb2_grpc.EnvironmentServiceStub(
        platform.registry
    ).CreateEnvironmentVersion(
        environments_pb2.CreateEnvironmentVersionRequest(parent=f"{workspace}/environments/plain")
    )
    return submit(workspace, snapshot=snapshot.name, environment=environment.name)


async def create(platform: Platform, request: runs_pb2.CreateRunRequest, **fields: object) -> runs_pb2.Run:
    """Submits a changed copy of a request."""
    copy = runs_pb2.CreateRunRequest(**fields)  # type: ignore[arg-type]  # the test's own fields
    merged = runs_pb2.CreateRunRequest()
    merged.CopyFrom(request)
    merged.MergeFrom(copy)
    return await platform.client.runs.CreateRun(merged)


async def check(platform: Platform, run: str) -> None:
    """Every line, point and file is there once."""
    text = b"".join(
        [answer.data async for answer in platform.client.logs.ReadLog(logs_pb2.ReadLogRequest(parent=run))]
    )
    assert text == LOG
    assert values(await platform.client.history(run, "loss")) == [step / 2 for step in range(20)]
    listed = await platform.client.artifacts.ListArtifacts(artifacts_pb2.ListArtifactsRequest(parent=run))
    assert [(file.path, file.size_bytes) for file in listed.files] == [("outputs/model.txt", 7)]


@pytest.mark.parametrize(
    "failpoint",
    [
        "agent.reported:1",
        "agent.reported:2",
        "agent.before_start",
        "agent.started",
        "agent.ended",
        "agent.collected",
        "agent.reported:4",
    ],
)
async def test_an_agent_killed_between_two_steps_goes_on_where_it_was(
    node: Node, request_of_a_run: runs_pb2.CreateRunRequest, failpoint: str
) -> None:
    async with node.agent(failpoint) as agent:
        run = await create(node.platform, request_of_a_run)
        assert await asyncio.wait_for(agent.wait(), 120) == -9
    async with node.agent():
        ended = await node.platform.until(run.name, runs_pb2.RUN_STATE_COMPLETED)
    await check(node.platform, run.name)
    names = ["prepare_environment", "fetch_snapshot", "fetch_inputs", "run_command", "collect_outputs"]
    assert [phase.name for phase in ended.phases] == names
    assert all(phase.HasField("end_time") for phase in ended.phases)


async def test_a_stopped_agent_leaves_its_command_and_cancels_it_when_it_is_back(
    node: Node, request_of_a_run: runs_pb2.CreateRunRequest
) -> None:
    client = node.platform.client.runs
    async with node.agent():
        run = await create(
            node.platform,
            request_of_a_run,
            command="mkdir outputs; echo 1 > outputs/x; trap '' TERM; sleep 99; sleep 99",
            grace=Duration(nanos=200_000_000),
        )
        await node.platform.until(run.name, runs_pb2.RUN_STATE_RUNNING)
    await client.CancelRun(runs_pb2.CancelRunRequest(name=run.name, message="enough"))
    async with node.agent():
        ended = await node.platform.until(run.name, runs_pb2.RUN_STATE_CANCELED)
    assert "enough" in ended.reason.message
    listed = await node.platform.client.artifacts.ListArtifacts(
        artifacts_pb2.ListArtifactsRequest(parent=run.name)
    )
    assert [file.path for file in listed.files] == ["outputs/x"]


async def test_a_run_that_the_node_ended_says_so(
    node: Node, request_of_a_run: runs_pb2.CreateRunRequest
) -> None:
    async with node.agent():
        run = await create(node.platform, request_of_a_run, command="sleep 99")
        await node.platform.until(run.name, runs_pb2.RUN_STATE_RUNNING)
    await node.sweep()
    async with node.agent():
        ended = await node.platform.until(run.name, runs_pb2.RUN_STATE_FAILED)
    assert (ended.reason.code, ended.reason.message) == ("NODE_STOPPED", "The node was stopped while it ran.")
    assert "again" in ended.reason.cure


async def test_a_failed_script_still_has_its_log_and_nothing_stays_on_the_node(
    node: Node, request_of_a_run: runs_pb2.CreateRunRequest
) -> None:
    async with node.agent() as agent:
        run = await create(node.platform, request_of_a_run, command="echo boom >&2; exit 3")
        ended = await node.platform.until(run.name, runs_pb2.RUN_STATE_FAILED)
        assert (ended.reason.code, ended.exit_code) == ("SCRIPT_FAILED", 3)
        assert "boom" in ended.reason.message
        left: Path = node.folder / "allocations"
        async with asyncio.timeout(60):
            while list(left.iterdir()):  # noqa: ASYNC110  # a folder has no event
                await asyncio.sleep(0.02)
        assert agent.returncode is None
