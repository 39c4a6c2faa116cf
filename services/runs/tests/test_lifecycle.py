"""Trees of runs, interactive runs, and what can be changed about a run later."""

import asyncio
import hashlib

import pytest
from google.protobuf.duration_pb2 import Duration

from services.runs.tests.support import Client, Platform, refused, submit
from stellwerk_platform.mongo import Database
from stellwerk_protos.common.v1.common_pb2 import Reason
from stellwerk_protos.compute.v1.computes_pb2 import ALLOCATION_STATE_SUCCEEDED
from stellwerk_protos.runs.v1 import runs_pb2 as pb
from stellwerk_runs.runs.domain import DEPTH
from stellwerk_runs.runs.leases import LeaseJudge, LeaseStore
from stellwerk_runs.runs.store import RunStore


def interactive(workspace: str, **fields: object) -> pb.CreateRunRequest:
    """A request for an interactive run."""
    return submit(workspace, kind=pb.RUN_KIND_INTERACTIVE, command="", compute="", **fields)


async def ended(platform: Platform, run: str) -> pb.Run:
    """A run whose command has succeeded."""
    return await platform.end(run, ALLOCATION_STATE_SUCCEEDED, "succeeded")


async def test_a_child_knows_its_parent_and_its_root(platform: Platform, client: Client) -> None:
    workspace = await platform.workspace()
    top = await platform.run(workspace)
    child = await client.runs.CreateRun(submit(workspace, parent_run=top.name))
    grandchild = await client.runs.CreateRun(interactive(workspace, parent_run=child.name))
    assert (top.parent_run, top.root_run) == ("", top.name)
    assert (grandchild.parent_run, grandchild.root_run) == (child.name, top.name)
    listed = await client.runs.ListRuns(pb.ListRunsRequest(parent=workspace, parent_run=top.name))
    assert [run.name for run in listed.runs] == [child.name]
    error = await refused(client.runs.CreateRun(submit(workspace, parent_run=f"{workspace}/runs/nobody")))
    assert error.reason == "RUN_NOT_FOUND"
    error = await refused(client.runs.CreateRun(submit(workspace, parent_run="workspaces/other/runs/r")))
    assert error.reason == "PERMISSION_DENIED"


async def test_a_run_that_has_ended_gets_no_children(platform: Platform, client: Client) -> None:
    top = await platform.run()
    await ended(platform, top.name)
    error = await refused(client.runs.CreateRun(submit(top.name.rsplit("/", 2)[0], parent_run=top.name)))
    assert error.reason == "PARENT_RUN_ENDED"


async def test_a_tree_is_bounded_in_depth(platform: Platform, client: Client) -> None:
    workspace = await platform.workspace()
    name = ""
    for _ in range(DEPTH):
        name = (await client.runs.CreateRun(interactive(workspace, parent_run=name))).name
    error = await refused(client.runs.CreateRun(interactive(workspace, parent_run=name)))
    assert error.reason == "RUN_TREE_TOO_DEEP"


async def test_a_cancel_reaches_the_whole_tree_and_nothing_else(platform: Platform, client: Client) -> None:
    workspace = await platform.workspace()
    # Nobody ends it before it is asked to stop again.
    top = await client.runs.CreateRun(interactive(workspace))
    sibling = await platform.run(workspace)
    child = await client.runs.CreateRun(interactive(workspace, parent_run=top.name))
    grandchild = await client.runs.CreateRun(interactive(workspace, parent_run=child.name))
    done = await client.runs.CreateRun(interactive(workspace, parent_run=top.name))
    orphan = await client.runs.CreateRun(interactive(workspace, parent_run=done.name))
    await client.runs.FinishRun(pb.FinishRunRequest(name=done.name, state=pb.RUN_STATE_COMPLETED))
    for _ in range(2):
        await client.runs.CancelRun(pb.CancelRunRequest(name=top.name, message="enough"))
    for run in (grandchild, orphan):
        found = await platform.until(run.name, pb.RUN_STATE_CANCEL_REQUESTED)
        assert "users/owner asked the run to stop: enough" in found.reason.message
    assert (await client.runs.GetRun(pb.GetRunRequest(name=done.name))).state == pb.RUN_STATE_COMPLETED
    untouched = await client.runs.GetRun(pb.GetRunRequest(name=sibling.name))
    assert untouched.state in (pb.RUN_STATE_STARTING, pb.RUN_STATE_QUEUED)
    error = await refused(client.runs.CreateRun(interactive(workspace, parent_run=child.name)))
    assert error.reason == "PARENT_RUN_ENDED"


async def test_children_born_during_a_cancel_are_refused_or_canceled(
    platform: Platform, client: Client
) -> None:
    workspace = await platform.workspace()
    top = await client.runs.CreateRun(interactive(workspace))
    births = [client.runs.CreateRun(interactive(workspace, parent_run=top.name)) for _ in range(12)]
    cancel = client.runs.CancelRun(pb.CancelRunRequest(name=top.name))
    results = await asyncio.gather(*births[:6], cancel, *births[6:], return_exceptions=True)
    for result in results:
        if isinstance(result, pb.Run):
            await platform.until(result.name, pb.RUN_STATE_CANCEL_REQUESTED)


async def test_an_interactive_run_lives_and_ends(platform: Platform, client: Client) -> None:
    workspace = await platform.workspace()
    run = await client.runs.CreateRun(interactive(workspace))
    assert (run.state, run.reason.code) == (pb.RUN_STATE_RUNNING, "STARTED")
    assert run.HasField("start_time")
    renewed = await client.runs.RenewRun(pb.RenewRunRequest(name=run.name))
    assert renewed.lease_expire_time.ToNanoseconds() > run.create_time.ToNanoseconds() + 25e9
    assert not renewed.cancel_requested
    asked = await client.runs.CancelRun(pb.CancelRunRequest(name=run.name))
    assert await client.runs.CancelRun(pb.CancelRunRequest(name=run.name)) == asked
    assert (await client.runs.RenewRun(pb.RenewRunRequest(name=run.name))).cancel_requested
    finish = pb.FinishRunRequest(
        name=run.name, state=pb.RUN_STATE_CANCELED, reason=Reason(code="INTERRUPTED", message="Ctrl-C.")
    )
    first = await client.runs.FinishRun(finish)
    assert (first.state, first.reason.code, first.HasField("end_time")) == (
        pb.RUN_STATE_CANCELED,
        "INTERRUPTED",
        True,
    )
    assert await client.runs.FinishRun(finish) == first
    finish.state = pb.RUN_STATE_COMPLETED
    assert (await refused(client.runs.FinishRun(finish))).reason == "RUN_ENDED"
    assert (await refused(client.runs.RenewRun(pb.RenewRunRequest(name=run.name)))).reason == "RUN_ENDED"


async def test_a_run_on_a_compute_has_no_lease_to_renew(platform: Platform, client: Client) -> None:
    run = await platform.run()
    finish = pb.FinishRunRequest(name=run.name, state=pb.RUN_STATE_COMPLETED)
    assert (await refused(client.runs.FinishRun(finish))).reason == "NOT_INTERACTIVE"
    assert (
        await refused(client.runs.RenewRun(pb.RenewRunRequest(name=run.name)))
    ).reason == "NOT_INTERACTIVE"
    finish.state = pb.RUN_STATE_RUNNING
    assert (await refused(client.runs.FinishRun(finish))).reason == "INVALID_STATE"


async def test_a_lease_that_runs_out_can_be_renewed_until_it_is_lost(
    platform: Platform, client: Client
) -> None:
    workspace = await platform.workspace()
    run = await client.runs.CreateRun(interactive(workspace))
    stopped = await client.runs.CreateRun(interactive(workspace))
    await client.runs.CancelRun(pb.CancelRunRequest(name=stopped.name))
    database = Database(platform.settings.mongodb_uri, platform.settings.namespace, "runs")
    leases = database.raw["run_leases"]

    async def expire(name: str) -> None:
        # As if nothing had been heard for as long as the lease lasts.
        begin = run.create_time.ToDatetime()
        await leases.update_one({"_id": name}, {"$set": {"expire_time": begin}})

    await expire(run.name)
    silent = await platform.until(run.name, pb.RUN_STATE_NOT_RESPONDING)
    assert silent.reason.code == "LEASE_EXPIRED"
    await client.runs.RenewRun(pb.RenewRunRequest(name=run.name))
    back = await client.runs.GetRun(pb.GetRunRequest(name=run.name))
    assert (back.state, back.reason.code) == (pb.RUN_STATE_RUNNING, "RESPONDS")
    await expire(run.name)
    await platform.until(run.name, pb.RUN_STATE_NOT_RESPONDING)
    await expire(run.name)
    assert (await platform.until(run.name, pb.RUN_STATE_FAILED)).reason.code == "LEASE_EXPIRED"
    await expire(stopped.name)
    assert (
        "asked the run to stop" in (await platform.until(stopped.name, pb.RUN_STATE_CANCELED)).reason.message
    )
    assert await leases.count_documents({"_id": {"$in": [run.name, stopped.name]}}) == 0
    database.close()


async def test_many_judges_judge_a_lease_once(platform: Platform, client: Client) -> None:
    run = await client.runs.CreateRun(interactive(await platform.workspace()))
    database = Database(platform.settings.mongodb_uri, platform.settings.namespace, "runs")
    leases = LeaseStore(database, RunStore(database), 30.0)
    await database.raw["run_leases"].update_one(
        {"_id": run.name}, {"$set": {"expire_time": run.create_time.ToDatetime()}}
    )
    judged = await asyncio.gather(*(leases.judge(run.name) for _ in range(4)))
    found = await platform.until(run.name, pb.RUN_STATE_NOT_RESPONDING)
    # The service's own judge is the fifth.
    assert sum(judged) <= 1
    assert found.revision == run.revision + 1
    database.close()


async def test_a_judge_that_stood_still_first_gives_everyone_a_lease(
    platform: Platform, client: Client
) -> None:
    workspace = await platform.workspace()
    run = await client.runs.CreateRun(interactive(workspace))
    database = Database(platform.settings.mongodb_uri, f"{platform.settings.namespace}x", "runs")
    leases = LeaseStore(database, RunStore(database), 30.0)
    await leases.open()
    await database.raw["run_leases"].insert_one(
        {"_id": run.name, "expire_time": run.create_time.ToDatetime()}
    )
    expiry = await LeaseJudge(leases).round(stalled=True)
    assert expiry is not None
    assert expiry.timestamp() > run.create_time.seconds + 25
    await database.client.drop_database(database.raw.name)
    database.close()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"kind": pb.RUN_KIND_INTERACTIVE}, "INTERACTIVE_RUN"),
        ({"timeout": Duration(seconds=0)}, "INVALID_TIMEOUT"),
        ({"timeout": Duration(seconds=-(2**40))}, "INVALID_TIMEOUT"),
        ({"cloned_from": "{w}/runs/nobody"}, "RUN_NOT_FOUND"),
        ({"git": pb.GitInfo(patch="abc")}, "INVALID_DIGEST"),
        ({"git": pb.GitInfo(patch=hashlib.sha256(b"nowhere").hexdigest())}, "BLOB_MISSING"),
    ],
)
async def test_what_a_submit_may_not_ask_for(
    platform: Platform, client: Client, fields: dict[str, object], reason: str
) -> None:
    workspace = await platform.workspace()
    known = {k: v.format(w=workspace) if isinstance(v, str) else v for k, v in fields.items()}
    assert (await refused(client.runs.CreateRun(submit(workspace, **known)))).reason == reason


async def test_a_run_keeps_its_patch_its_timeout_and_what_it_repeats(
    platform: Platform, client: Client
) -> None:
    workspace = await platform.workspace()
    first = await platform.run(workspace)
    patch = await platform.upload(workspace, "patch", b"--- a\n+++ b\n")
    run = await client.runs.CreateRun(
        submit(
            workspace,
            git=pb.GitInfo(commit="c0ffee", dirty=True, patch=patch.sha256),
            timeout=Duration(seconds=90),
            cloned_from=first.name,
        )
    )
    assert (run.git.patch, run.workload.timeout.seconds) == (patch.sha256, 90)
    assert (run.cloned_from, run.kind) == (first.name, pb.RUN_KIND_COMMAND)


async def test_an_update_changes_what_its_mask_names(platform: Platform, client: Client) -> None:
    # Nobody else changes an interactive run.
    run = await client.runs.CreateRun(interactive(await platform.workspace()))
    wanted = pb.Run(name=run.name, display_name="Best", description="So far.", tags={"a": "1"})
    request = pb.UpdateRunRequest(run=wanted)
    request.update_mask.paths.extend(["display_name", "tags"])
    changed = await client.runs.UpdateRun(request)
    assert (changed.display_name, changed.description, dict(changed.tags)) == ("Best", "", {"a": "1"})
    assert (await client.runs.UpdateRun(request)).revision == changed.revision
    request.etag = str(changed.revision - 1)
    assert (await refused(client.runs.UpdateRun(request))).reason == "REVISION_CHANGED"
    bad = pb.UpdateRunRequest(run=wanted)
    bad.update_mask.paths.append("state")
    assert (await refused(client.runs.UpdateRun(bad))).reason == "INVALID_UPDATE_MASK"


async def test_an_archived_run_is_hidden_until_it_is_restored(platform: Platform, client: Client) -> None:
    workspace = await platform.workspace()
    run = await platform.run(workspace)
    archive = pb.ArchiveRunRequest(name=run.name)
    assert (await refused(client.runs.ArchiveRun(archive))).reason == "RUN_NOT_ENDED"
    await ended(platform, run.name)
    first = await client.runs.ArchiveRun(archive)
    assert first.HasField("archive_time")
    assert await client.runs.ArchiveRun(archive) == first

    async def seen(everything: bool) -> tuple[int, int]:
        listed = await client.runs.ListRuns(pb.ListRunsRequest(parent=workspace, include_archived=everything))
        found = await client.runs.SearchRuns(
            pb.SearchRunsRequest(parent=workspace, include_archived=everything)
        )
        return len(listed.runs), len(found.runs)

    assert await seen(False) == (0, 0)
    assert await seen(True) == (1, 1)
    restored = await client.runs.RestoreRun(pb.RestoreRunRequest(name=run.name))
    assert not restored.HasField("archive_time")
    assert await seen(False) == (1, 1)
