"""What a script may do with the token of its run: look after the runs below it, and nothing else."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from services.runs.tests.support import Client, Platform, metrics, points, refused, submit, text
from services.runs.tests.test_lifecycle import ended, interactive
from stellwerk_platform.auth import StaticCredentials
from stellwerk_platform.grpc_client import connect
from stellwerk_platform.mongo import Database
from stellwerk_protos.compute.v1.computes_pb2 import ALLOCATION_STATE_FAILED
from stellwerk_protos.runs.v1 import runs_pb2 as pb
from stellwerk_protos.runs.v1.artifacts_pb2 import CreateArtifactsRequest
from stellwerk_protos.runs.v1.logs_pb2 import ReadLogRequest
from stellwerk_protos.runs.v1.metrics_pb2 import WatchMetricsRequest
from stellwerk_protos.runs.v1.snapshots_pb2 import CreateSnapshotRequest
from stellwerk_protos.secrets.v1.tokens_pb2 import IssueWorkloadTokenRequest
from stellwerk_runs.runs import states


@asynccontextmanager
async def workload(platform: Platform, run: str) -> AsyncIterator[Client]:
    """The stubs behind the token of a run."""
    async with platform.secrets.as_service() as secrets:
        token = (await secrets.IssueWorkloadToken(IssueWorkloadTokenRequest(owner=run))).token
    async with connect(platform.settings.listen, StaticCredentials(token)) as channel:
        yield Client(channel)


async def test_a_run_makes_and_looks_after_runs_below_it_to_any_depth(platform: Platform) -> None:
    workspace = await platform.workspace()
    mine = (await platform.run(workspace)).name
    file = await platform.upload(workspace, "train.py", b"print()")
    async with workload(platform, mine) as own:
        child = await own.runs.CreateRun(interactive(workspace, parent_run=mine))
        deeper = await own.runs.CreateRun(interactive(workspace, parent_run=child.name))
        placed = await own.runs.CreateRun(submit(workspace, parent_run=deeper.name))
        assert (deeper.creator, placed.root_run) == (mine, mine)
        assert await own.append(text(deeper.name, b"deep", 0)) == [0]
        await own.runs.RenewRun(pb.RenewRunRequest(name=deeper.name))
        changed = pb.Run(name=placed.name, description="by its tree")
        mask = FieldMask(paths=["description"])
        assert (
            await own.runs.UpdateRun(pb.UpdateRunRequest(run=changed, update_mask=mask))
        ).description == "by its tree"
        await own.artifacts.CreateArtifacts(CreateArtifactsRequest(parent=deeper.name, files=[file]))
        await own.snapshots.CreateSnapshot(CreateSnapshotRequest(parent=workspace, files=[file]))
        await own.runs.CancelRun(pb.CancelRunRequest(name=placed.name))
        done = await own.runs.FinishRun(pb.FinishRunRequest(name=child.name, state=pb.RUN_STATE_COMPLETED))
        assert done.state == pb.RUN_STATE_COMPLETED


_Call = Callable[[Client, str, str], Awaitable[object]]


@pytest.mark.parametrize(
    "call",
    [
        lambda own, mine, other: own.append(text(other, b"not mine", 0)),
        lambda own, mine, other: own.runs.RenewRun(pb.RenewRunRequest(name=other)),
        lambda own, mine, other: own.runs.FinishRun(
            pb.FinishRunRequest(name=other, state=pb.RUN_STATE_FAILED)
        ),
        lambda own, mine, other: own.runs.CancelRun(pb.CancelRunRequest(name=other)),
        lambda own, mine, other: own.runs.CancelRun(pb.CancelRunRequest(name=mine)),
        lambda own, mine, other: own.runs.UpdateRun(
            pb.UpdateRunRequest(run=pb.Run(name=other), update_mask=FieldMask(paths=["tags"]))
        ),
        lambda own, mine, other: own.runs.ArchiveRun(pb.ArchiveRunRequest(name=other)),
        lambda own, mine, other: own.artifacts.CreateArtifacts(CreateArtifactsRequest(parent=other)),
        lambda own, mine, other: own.runs.CreateRun(submit(_workspace(mine))),
        lambda own, mine, other: own.runs.CreateRun(interactive(_workspace(mine), parent_run=other)),
        lambda own, mine, other: own.runs.CreateRun(
            interactive(
                _workspace(mine), parent_run=mine, experiment=f"{_workspace(mine)}/experiments/another"
            )
        ),
    ],
)
async def test_other_runs_stay_closed_to_a_run(platform: Platform, client: Client, call: _Call) -> None:
    workspace = await platform.workspace()
    above = (await client.runs.CreateRun(interactive(workspace))).name
    mine = (await client.runs.CreateRun(submit(workspace, parent_run=above))).name
    sibling = (await client.runs.CreateRun(interactive(workspace, parent_run=above))).name
    async with workload(platform, mine) as own:
        for other in (above, sibling, f"{workspace}/runs/nobody"):
            assert (await refused(call(own, mine, other))).reason == "PERMISSION_DENIED"


async def test_a_token_that_outlives_its_run_makes_no_more_runs(platform: Platform, client: Client) -> None:
    workspace = await platform.workspace()
    mine = (await platform.run(workspace)).name
    async with workload(platform, mine) as own:
        placed = await own.runs.CreateRun(submit(workspace, parent_run=mine))
        await ended(platform, mine)
        error = await refused(own.runs.CreateRun(interactive(workspace, parent_run=placed.name)))
        # It is revoked within moments; until then the run itself is looked at.
        assert error.reason in ("PERMISSION_DENIED", "TOKEN_REVOKED")


def _workspace(run: str) -> str:
    return run.rsplit("/runs/", 1)[0]


async def test_what_a_script_did_not_end_ends_with_its_run(platform: Platform, client: Client) -> None:
    workspace = await platform.workspace()
    mine = (await platform.run(workspace)).name
    by_hand = await client.runs.CreateRun(interactive(workspace, parent_run=mine))
    async with workload(platform, mine) as own:
        child = await own.runs.CreateRun(interactive(workspace, parent_run=mine))
        deeper = await own.runs.CreateRun(interactive(workspace, parent_run=child.name))
        placed = await own.runs.CreateRun(submit(workspace, parent_run=mine))
    await platform.end(mine, ALLOCATION_STATE_FAILED, "failed")
    for run in (child, deeper):
        found = await platform.until(run.name, pb.RUN_STATE_FAILED)
        assert found.reason.code == "PARENT_RUN_ENDED"
        assert mine in found.reason.message
    # These have a process of their own, whose end somebody else tells.
    for run in (by_hand, placed):
        found = await client.runs.GetRun(pb.GetRunRequest(name=run.name))
        assert not states.is_terminal(found.state)


async def test_a_child_that_outlives_its_lease_and_its_script_is_not_waited_for(
    platform: Platform, client: Client
) -> None:
    workspace = await platform.workspace()
    mine = (await platform.run(workspace)).name
    async with workload(platform, mine) as own:
        child = await own.runs.CreateRun(interactive(workspace, parent_run=mine))
    database = Database(platform.settings.mongodb_uri, platform.settings.namespace, "runs")
    # As if the service had died between the two ends.
    await database.raw["runs"].update_one({"_id": mine}, {"$set": {"state": "RUN_STATE_CANCELED"}})
    begin = child.create_time.ToDatetime()
    await database.raw["run_leases"].update_one({"_id": child.name}, {"$set": {"expire_time": begin}})
    found = await platform.until(child.name, pb.RUN_STATE_CANCELED)
    assert mine in found.reason.message
    database.close()


async def test_a_watcher_of_a_run_that_others_ended_sees_what_is_delivered_afterwards(
    platform: Platform, client: Client
) -> None:
    workspace = await platform.workspace()
    mine = (await platform.run(workspace)).name
    async with workload(platform, mine) as own:
        child = (await own.runs.CreateRun(interactive(workspace, parent_run=mine))).name
    await platform.end(mine, ALLOCATION_STATE_FAILED, "failed")
    await platform.until(child, pb.RUN_STATE_FAILED)
    watch = client.metrics.WatchMetrics(WatchMetricsRequest(parent=child))
    log = client.logs.ReadLog(ReadLogRequest(parent=child, log="logs/a.txt", follow=True))
    told = asyncio.gather(anext(aiter(watch)), anext(aiter(log)))
    # As `stellwerk run ship` does it: the token of the run has ended with it.
    await client.append(metrics(child, "loss", points([1.0])), text(child, b"late", 0, log="logs/a.txt"))
    late, line = await told
    assert late.columns[0].metric == "loss"
    assert line.data == b"late"
    watch.cancel()
    log.cancel()
