"""Batch jobs from their creation to their results; the test plays the replicas, compute and the registry."""

import asyncio

import pytest

from services.inference.tests.batch_support import INPUT, batch_deployment, ended, submit, worker
from services.inference.tests.support import WORKSPACE, Inference, Journal, Scorer, deployment_request
from services.inference.tests.test_inference import reason_of
from stellwerk_inference import states
from stellwerk_inference.batches import domain, leases, requests
from stellwerk_inference.batches.mini_batches import store as mini_batches
from stellwerk_inference.deployments import domain as deployments
from stellwerk_platform.errors import InvalidArgument
from stellwerk_protos.common.v1.common_pb2 import File, Reason
from stellwerk_protos.compute.v1 import computes_pb2 as compute
from stellwerk_protos.compute.v1 import workloads_pb2
from stellwerk_protos.inference.v1 import batches_pb2 as pb
from stellwerk_protos.inference.v1 import collections_pb2, endpoints_pb2


async def test_a_dataset_is_scored_and_its_results_are_registered(
    inference: Inference, journal: Journal, scorer: Scorer
) -> None:
    deployment, replica = await batch_deployment(inference, journal, scorer, "scored")
    assert scorer.scored == []  # no sample request
    job = await submit(inference, deployment, job_id="first", request_id="r1")
    assert (job.state, job.input) == (domain.QUEUED, f"{WORKSPACE}/datasets/digits/versions/3")
    assert (job.progress.file_count, job.progress.mini_batch_count) == (25, 3)
    again = await submit(inference, deployment, job_id="other", request_id="r1")
    assert again.name == job.name
    async with worker(inference, replica) as agent:
        lease = await agent.lease()
        assert lease is not None
        assert [file.path for file in lease.files] == [f"{number:03}.csv" for number in range(10)]
        assert lease.token.count(".") == 2
        running = await inference.batches.GetBatchJob(pb.GetBatchJobRequest(name=job.name))
        assert (running.state, running.progress.running_mini_batch_count) == (domain.RUNNING, 1)
        await agent.renew(lease)
        await agent.finish(lease)
        await agent.finish(lease)  # its answer was not heard
        assert await agent.work() == ["1", "2", "merge"]
    done = await ended(inference, job.name)
    assert (done.state, done.reason.code) == (domain.COMPLETED, "COMPLETED")
    progress = done.progress
    assert (progress.succeeded_file_count, progress.failed_file_count, progress.row_count) == (25, 0, 25)
    assert (progress.succeeded_mini_batch_count, progress.running_mini_batch_count) == (3, 0)
    (version,) = [v for v in inference.others.registered.values() if v.name == done.output]
    assert done.output.startswith(f"{WORKSPACE}/datasets/scored-results/versions/")
    assert [file.path for file in version.files] == ["predictions.csv"]
    assert version.tags["batch_job"] == job.name
    # What the mini-batches came to is in the one file, so it need not stay.
    async with asyncio.timeout(60):
        while await inference.others.released.get() != "e" * 64:
            pass

    first = pb.ListMiniBatchesRequest(parent=job.name, page_size=2)
    page = await inference.batches.ListMiniBatches(first)
    first.page_token = page.next_page_token
    rest = await inference.batches.ListMiniBatches(first)
    items = [*page.mini_batches, *rest.mini_batches]
    assert [item.name.rpartition("/")[2] for item in items] == ["0", "1", "2"]
    assert [item.file_count for item in items] == [10, 10, 5]
    assert {item.state for item in items} == {pb.MINI_BATCH_STATE_SUCCEEDED}
    listed = await inference.batches.ListBatchJobs(pb.ListBatchJobsRequest(parent=f"{WORKSPACE}/endpoints/-"))
    assert job.name in [one.name for one in listed.batch_jobs]


async def test_lost_leases_go_to_others_and_change_nothing_any_more(
    inference: Inference, journal: Journal, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment, replica = await batch_deployment(inference, journal, scorer, "lost")
    job = await submit(inference, deployment, input_path="00")
    async with worker(inference, replica) as agent:
        first = await agent.lease()
        assert first is not None
        # The agent is started again and does not know what it had.
        agent.held.clear()
        second = await agent.lease()
        assert second is not None
        assert (second.name, second.lease_id != first.lease_id) == (first.name, True)
        assert await reason_of(agent.finish(first)) == "LEASE_LOST"
        assert await reason_of(agent.renew(first)) == "LEASE_LOST"
        # Nothing but the blobs of results is let go with a lease.
        bad = [File(path="0.csv", sha256="a/b")]
        failed = agent.finish(first, bad, failure=Reason(code="SCRIPT_ERROR"))
        assert await reason_of(failed) == "INVALID_RESULT"
        assert await reason_of(agent.finish(first, bad)) == "INVALID_DIGEST"
        # Silent for too long: here for no time at all.
        monkeypatch.setattr(mini_batches, "LEASE_SECONDS", 0.0)
        await agent.renew(second)
        monkeypatch.undo()
        third = await agent.lease()
        assert third is not None
        assert (third.name, third.lease_id != second.lease_id) == (first.name, True)
        assert await reason_of(agent.finish(second)) == "LEASE_LOST"
        await agent.finish(third)
        assert await agent.work() == ["merge"]
    done = await ended(inference, job.name)
    assert done.progress.succeeded_file_count == 10
    (item,) = (
        await inference.batches.ListMiniBatches(pb.ListMiniBatchesRequest(parent=job.name))
    ).mini_batches
    assert item.attempt_count == 3


async def test_what_fails_is_tried_again_and_then_counted(
    inference: Inference, journal: Journal, scorer: Scorer
) -> None:
    deployment, replica = await batch_deployment(
        inference, journal, scorer, "failing-batch", max_retries=1, mini_batch_size=5
    )
    tolerant = await submit(inference, deployment, job_id="tolerant")
    async with worker(inference, replica) as agent:
        for _ in range(2):
            lease = await agent.lease()
            assert lease is not None
            assert lease.name.endswith("/0")
            await agent.fail(lease)
        assert await agent.work() == ["1", "2", "3", "4", "merge"]
    done = await ended(inference, tolerant.name)
    assert (done.state, done.progress.failed_file_count) == (domain.COMPLETED, 5)
    assert "5 files failed" in done.reason.message

    strict = await submit(
        inference,
        deployment,
        settings=workloads_pb2.BatchSettings(error_threshold=4, max_retries=0),
    )
    assert (strict.settings.mini_batch_size, strict.settings.max_retries) == (5, 0)
    async with worker(inference, replica) as agent:
        scored, lease, other = [await agent.lease() for _ in range(3)]
        assert scored is not None
        assert lease is not None
        assert other is not None
        await agent.finish(scored, [File(path="0.csv", sha256="a" * 64)])
        assert await held(inference, "a" * 64)
        await agent.fail(lease)
        assert await reason_of(agent.renew(other)) == "LEASE_LOST"
        late = agent.finish(other, [File(path="2.csv", sha256="b" * 64)])
        assert await reason_of(late) == "LEASE_LOST"
    failed = await ended(inference, strict.name)
    assert (failed.state, failed.reason.code) == (domain.FAILED, "ERROR_THRESHOLD_EXCEEDED")
    assert "for example 005.csv: The script raised KeyError." in failed.reason.message
    # Nobody gets what was scored: it need not stay, and what came too late neither.
    assert not await held(inference, "a" * 64)
    left = await inference.batches.ListMiniBatches(pb.ListMiniBatchesRequest(parent=strict.name))
    assert not any(item.results for item in left.mini_batches)
    released: set[str] = set()
    async with asyncio.timeout(40):
        while not released >= {"a" * 64, "b" * 64}:
            released.add(await inference.others.released.get())

    hopeless = await submit(inference, deployment, settings=workloads_pb2.BatchSettings(max_retries=0))
    async with worker(inference, replica) as agent:
        for _ in range(5):
            lease = await agent.lease()
            assert lease is not None
            await agent.finish(lease, succeeded_file_count=0, row_count=0)
    nothing = await ended(inference, hopeless.name)
    assert nothing.reason.code == "NOTHING_SCORED"
    assert "--state" not in nothing.reason.cure  # none of them has failed
    short = await inference.batches.ListMiniBatches(pb.ListMiniBatchesRequest(parent=hopeless.name))
    assert {item.reason.code for item in short.mini_batches} == {"RESULTS_MISSING"}


async def test_a_job_whose_results_cannot_be_had_fails_with_the_reason(
    inference: Inference, journal: Journal, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment, replica = await batch_deployment(inference, journal, scorer, "unhad", max_retries=0)
    refusal = InvalidArgument("TOO_MANY_FILES", "20,001 files are more than 20,000.", "Pack them.")
    monkeypatch.setattr(inference.others, "refusal", refusal)
    async with worker(inference, replica) as agent:
        job = await submit(inference, deployment)
        assert await agent.work() == ["0", "1", "2", "merge"]
        failed = await ended(inference, job.name)
        assert (failed.state, failed.reason.code) == (domain.FAILED, "RESULTS_NOT_REGISTERED")
        assert ("20,001 files" in failed.reason.message, failed.reason.cure) == (True, "Pack them.")

        job = await submit(inference, deployment, input_path="00")
        for _ in range(2):
            lease = await agent.lease()
            assert lease is not None
            await (agent.fail(lease, "No space left.") if lease.merge_into else agent.finish(lease))
        failed = await ended(inference, job.name)
        assert failed.reason.code == "RESULTS_NOT_MERGED"
        assert "No space left." in failed.reason.message

        monkeypatch.setattr(domain, "MAX_LOST", 1)
        job = await submit(inference, deployment)
        assert await agent.lease() is not None
        agent.held.clear()
        other = await agent.lease()
        assert other is not None
        assert other.name.endswith("/1")
    failed_only = pb.ListMiniBatchesRequest(parent=job.name, state=pb.MINI_BATCH_STATE_FAILED)
    (item,) = (await inference.batches.ListMiniBatches(failed_only)).mini_batches
    assert (item.reason.code, item.attempt_count) == ("MINI_BATCH_LOST", 2)


async def held(inference: Inference, digest: str) -> bool:
    """Whether the registry is told that a blob must stay."""
    request = collections_pb2.ListCollectedBlobsRequest(parent=WORKSPACE, sha256=[digest])
    return digest in (await inference.collections_of_services.ListCollectedBlobs(request)).sha256


async def test_results_by_file_are_registered_without_a_merge(
    inference: Inference, journal: Journal, scorer: Scorer
) -> None:
    deployment, replica = await batch_deployment(
        inference, journal, scorer, "by-file", output_action=workloads_pb2.BATCH_OUTPUT_ACTION_BY_FILE
    )
    job = await submit(inference, deployment, output_dataset=f"{WORKSPACE}/datasets/mine")
    async with worker(inference, replica) as agent:
        for _ in range(3):
            lease = await agent.lease()
            assert lease is not None
            many = [File(path=f"{number}.json", sha256="e" * 64) for number in range(11)]
            assert await reason_of(agent.finish(lease, many)) == "INVALID_RESULT"
            assert await held(inference, "e" * 64) == (lease.files[0].path != "000.csv")
            await agent.finish(lease, [File(path=f"{f.path}.json", sha256="e" * 64) for f in lease.files])
    done = await ended(inference, job.name)
    assert not await held(inference, "e" * 64), "a dataset has it now"
    (version,) = [v for v in inference.others.registered.values() if v.name == done.output]
    assert version.name.startswith(f"{WORKSPACE}/datasets/mine/")
    assert [file.path for file in version.files] == [f"{number:03}.csv.json" for number in range(25)]


async def test_a_canceled_job_takes_its_leases_back(
    inference: Inference, journal: Journal, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_WAIT_SECONDS", 600.0)
    deployment, replica = await batch_deployment(inference, journal, scorer, "cancel")
    job = await submit(inference, deployment)
    async with worker(inference, replica) as agent:
        lease = await agent.lease()
        assert lease is not None
        hears = asyncio.create_task(reason_of(agent.renew(lease, wait_seconds=600)))
        request = pb.CancelBatchJobRequest(name=job.name)
        asked = await inference.batches.CancelBatchJob(request)
        assert asked.state in (domain.CANCEL_REQUESTED, domain.CANCELED)
        assert await hears == "LEASE_LOST"
        assert await reason_of(agent.finish(lease)) == "LEASE_LOST"
    done = await ended(inference, job.name)
    assert done.state == domain.CANCELED
    assert (await inference.batches.CancelBatchJob(request)).state == domain.CANCELED

    # A job without a replica at work is over at once; with its endpoint go the others.
    second = await submit(inference, deployment)
    endpoint = deployment.rpartition("/deployments/")[0]
    await inference.stub.DeleteEndpoint(endpoints_pb2.DeleteEndpointRequest(name=endpoint))
    gone = await ended(inference, second.name)
    assert (gone.state, gone.reason.code) == (domain.CANCELED, "ENDPOINT_DELETED")


async def listed(inference: Inference, endpoint: str) -> list[str]:
    """The names of the jobs of an endpoint, which a list of all jobs has as well."""
    answer = await inference.batches.ListBatchJobs(pb.ListBatchJobsRequest(parent=endpoint))
    every = pb.ListBatchJobsRequest(parent=f"{WORKSPACE}/endpoints/-", page_size=1_000)
    names = [job.name for job in (await inference.batches.ListBatchJobs(every)).batch_jobs]
    assert [name for name in names if name.startswith(f"{endpoint}/")] == [j.name for j in answer.batch_jobs]
    return [job.name for job in answer.batch_jobs]


async def test_an_endpoint_that_is_created_again_has_none_of_the_old_jobs(
    inference: Inference, journal: Journal, scorer: Scorer
) -> None:
    deployment, replica = await batch_deployment(inference, journal, scorer, "again")
    endpoint = deployment.rpartition("/deployments/")[0]
    first = await submit(inference, deployment, job_id="first")
    other = await submit(inference, deployment, job_id="other")
    await inference.stub.DeleteEndpoint(endpoints_pb2.DeleteEndpointRequest(name=endpoint))
    for job in (first, other):
        first = await ended(inference, job.name)
    await inference.allocate(replica, compute.ALLOCATION_STATE_CANCELED)
    while (await journal.next("endpoint.deleted"))["subject"] != endpoint:
        pass  # of another test
    deployment, replica = await batch_deployment(inference, journal, scorer, "again")
    assert await listed(inference, endpoint) == []
    for refused in (
        inference.batches.GetBatchJob(pb.GetBatchJobRequest(name=other.name)),
        inference.batches.CancelBatchJob(pb.CancelBatchJobRequest(name=other.name)),
        inference.batches.ListMiniBatches(pb.ListMiniBatchesRequest(parent=other.name)),
    ):
        assert await reason_of(refused) == "BATCH_JOB_NOT_FOUND"

    again = await submit(inference, deployment, job_id="other", input_path="00")
    # Those who read the journal know it by its number.
    assert again.revision == first.revision + 1
    assert (again.state, again.progress.mini_batch_count) == (domain.QUEUED, 1)
    assert await reason_of(submit(inference, deployment, job_id="other")) == "ALREADY_EXISTS"
    assert await listed(inference, endpoint) == [other.name]
    async with worker(inference, replica) as agent:
        assert await agent.work() == ["0", "merge"]
    done = await ended(inference, again.name)
    assert (done.state, done.progress.file_count) == (domain.COMPLETED, 10)


async def test_what_cannot_be_is_refused_with_a_cure(
    inference: Inference, journal: Journal, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    online = (await inference.create_endpoint("online")).name
    request = deployment_request(online, "blue")
    request.batch_settings.mini_batch_size = 5
    assert await reason_of(inference.stub.CreateDeployment(request)) == "ENDPOINT_NOT_BATCH"
    job = pb.CreateBatchJobRequest(parent=online, input=INPUT)
    assert await reason_of(inference.batches.CreateBatchJob(job)) == "ENDPOINT_NOT_BATCH"
    job.ClearField("input")
    assert await reason_of(inference.batches.CreateBatchJob(job)) == "INPUT_MISSING"

    deployment, replica = await batch_deployment(inference, journal, scorer, "refusing")
    endpoint = deployment.rpartition("/deployments/")[0]
    request = deployment_request(endpoint, "green")
    request.data_collection.collections.append("request")
    assert await reason_of(inference.stub.CreateDeployment(request)) == "ENDPOINT_IS_BATCH"
    for fields, reason in (
        ({"input": f"{WORKSPACE}/datasets/none/versions/1"}, "NOT_FOUND_THERE"),
        ({"input": "workspaces/other/datasets/digits/versions/1"}, "WORKSPACE_MISMATCH"),
        ({"input_path": "elsewhere/"}, "NO_INPUT_FILES"),
        ({"deployment": "green"}, "DEPLOYMENT_NOT_FOUND"),
        ({"job_id": "Not A Name"}, "INVALID_NAME"),
        ({"settings": workloads_pb2.BatchSettings(mini_batch_size=2_000)}, "INVALID_BATCH_SETTINGS"),
        ({"settings": workloads_pb2.BatchSettings(max_concurrency_per_replica=2)}, "INVALID_BATCH_SETTINGS"),
        ({"settings": workloads_pb2.BatchSettings(output_file_name="../x.csv")}, "INVALID_BATCH_SETTINGS"),
    ):
        wrong = pb.CreateBatchJobRequest(parent=endpoint, input=INPUT)
        wrong.MergeFrom(pb.CreateBatchJobRequest(**fields))
        assert await reason_of(inference.batches.CreateBatchJob(wrong)) == reason, fields

    # While it has a job, a deployment stays as it is.
    going = await submit(inference, deployment)
    with monkeypatch.context() as patch:
        patch.setattr(requests, "MAX_OPEN_JOBS", 1)
        assert await reason_of(submit(inference, deployment)) == "TOO_MANY_JOBS"
    update = endpoints_pb2.UpdateDeploymentRequest(name=deployment)
    update.batch_settings.mini_batch_size = 3
    update.update_mask.paths.append("batch_settings")
    assert await reason_of(inference.stub.UpdateDeployment(update)) == "BATCH_JOBS_RUNNING"
    await inference.stub.SetTraffic(endpoints_pb2.SetTrafficRequest(name=endpoint))
    delete = endpoints_pb2.DeleteDeploymentRequest(name=deployment)
    assert await reason_of(inference.stub.DeleteDeployment(delete)) == "BATCH_JOBS_RUNNING"
    async with worker(inference, replica) as agent:
        agent.replica = replica[:-1] + ("0" if replica[-1] != "0" else "1")
        assert await reason_of(agent.lease()) == "PERMISSION_DENIED"
    await inference.batches.CancelBatchJob(pb.CancelBatchJobRequest(name=going.name))
    await ended(inference, going.name)
    changed = await inference.stub.UpdateDeployment(update)
    assert changed.target_rollout == 2
    assert changed.rollouts[-1].workload.batch_settings.mini_batch_size == 3
    assert changed.rollouts[-1].workload.batch_settings.timeout_seconds == 600


async def test_replicas_come_with_a_job_and_go_after_it(
    inference: Inference, journal: Journal, scorer: Scorer
) -> None:
    scale = endpoints_pb2.ScaleSettings(min_replicas=0, max_replicas=2, scale_down_delay_seconds=1)
    deployment, replica = await batch_deployment(inference, journal, scorer, "scaled-batch", scale)
    slept = await journal.next("deployment.scaled")
    assert slept["data"]["reason"]["code"] == "BATCH_JOBS_DONE"
    assert (await journal.next("replica.deleting"))["subject"] == replica
    await inference.allocate(replica, compute.ALLOCATION_STATE_CANCELED)
    job = await submit(inference, deployment)
    events = await journal.together(deployment_scaled=1, replica_created=2)
    assert events["deployment_scaled"][0]["data"]["reason"]["code"] == "BATCH_JOB_WAITS"
    assert "at least 2 mini-batches are open" in events["deployment_scaled"][0]["data"]["reason"]["message"]
    first = events["replica_created"][0]["subject"]
    await inference.allocate(first, compute.ALLOCATION_STATE_QUEUED, code="NO_NODE")
    waits = (await journal.next("batch_job.progressed"))["data"]["reason"]
    assert waits["message"].startswith("Waits for a replica: ")
    await inference.allocate(first, compute.ALLOCATION_STATE_RUNNING, scorer.address)
    async with worker(inference, first) as agent:
        assert await agent.lease() is not None
    # What a replica had that has ended is given to another one at once.
    await inference.allocate(first, compute.ALLOCATION_STATE_FAILED, code="SCORER_ENDED")
    second = events["replica_created"][1]["subject"]
    await inference.allocate(second, compute.ALLOCATION_STATE_RUNNING, scorer.address)
    async with worker(inference, second) as agent, asyncio.timeout(60):
        assert sorted(await agent.work()) == ["0", "1", "2", "merge"]
    assert (await ended(inference, job.name)).state == domain.COMPLETED
    awake = await journal.next("deployment.scaled")
    assert awake["data"]["resource"].get("replicaCount", 0) == 0


async def test_a_job_ends_with_the_deployment_that_fails(
    inference: Inference, journal: Journal, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment, replica = await batch_deployment(inference, journal, scorer, "stranded")
    job = await submit(inference, deployment)
    monkeypatch.setattr(deployments, "_FAILURES_PER_REPLICA", 0)
    await inference.allocate(replica, compute.ALLOCATION_STATE_FAILED, code="SCRIPT_FAILED")
    await inference.deployment(deployment, states.FAILED)
    failed = await ended(inference, job.name)
    assert (failed.state, failed.reason.code) == (domain.FAILED, "DEPLOYMENT_FAILED")
    assert failed.reason.cure
