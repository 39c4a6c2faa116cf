"""Random histories of leases on a real MongoDB: each file ends in exactly one result, and counts add up."""

import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stellwerk_inference.batches import domain, requests
from stellwerk_inference.batches.mini_batches.store import SCORE, MiniBatchStore, Taken
from stellwerk_inference.batches.progress import Settler
from stellwerk_inference.batches.settings import filled
from stellwerk_inference.batches.store import BatchStore
from stellwerk_inference.collected.store import CollectedStore
from stellwerk_inference.states import SUCCEEDED
from stellwerk_inference.store import Store
from stellwerk_launcher.testing import Servers
from stellwerk_platform.documents import now
from stellwerk_platform.journal import Fact
from stellwerk_platform.mongo import Database
from stellwerk_protos.common.v1.common_pb2 import File, Reason
from stellwerk_protos.compute.v1.workloads_pb2 import BatchSettings, Workload
from stellwerk_protos.inference.v1 import batches_pb2 as pb
from stellwerk_protos.inference.v1 import endpoints_pb2

ENDPOINT = "workspaces/demo/endpoints/digits"
FILES = [File(path=f"{number:02}.csv", sha256="d" * 64) for number in range(11)]
RETRIES = 2
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["take", "forget", "succeed", "half", "fail", "expire", "stale", "again"]),
        st.integers(0, 5),
    ),
    max_size=30,
)


@pytest.fixture(scope="module")
async def stores(servers: Servers) -> AsyncIterator[tuple[Store, BatchStore]]:
    database = Database(servers.mongodb_uri, f"batch{secrets.token_hex(4)}", "inference")
    await database.open()
    store = Store(database)
    batches = BatchStore(database, store, CollectedStore(database))
    await store.open()
    await batches.open()
    yield store, batches
    await database.client.drop_database(database.raw.name)
    database.close()


class History:
    """A job, its replicas, and what they were told."""

    def __init__(self, mini_batches: MiniBatchStore, job: pb.BatchJob) -> None:
        self.mini_batches = mini_batches
        self.job = job
        self.held: dict[str, list[Taken]] = {"r0": [], "r1": [], "r2": []}
        self.lost: list[Taken] = []
        # What was taken in, by mini-batch.
        self.rows: dict[str, int] = {}
        self.failures: dict[str, int] = {}

    async def take(self, step: str, number: int) -> None:
        replica = f"r{number % 3}"
        held = self.held[replica]
        if step in ("take", "forget"):
            known = [] if step == "forget" else [taken.lease_id for taken in held]
            asked = datetime.now(UTC) + timedelta(seconds=1)
            taken = await self.mini_batches.take(self.job.name, SCORE, replica, known, asked)
            if taken is not None:
                self.losers(taken)
                held.append(taken)
        elif step == "expire" and held:
            taken = held[number % len(held)]
            await self.mini_batches._items.update_one(
                {"_id": taken.name, "lease_id": taken.lease_id},
                {"$set": {"lease_expire_time": datetime(2020, 1, 1, tzinfo=UTC)}},
            )
        elif step == "stale" and self.lost:
            taken = self.lost[number % len(self.lost)]
            assert not await self.finish(taken, replica, 0)
        elif step in ("succeed", "half", "fail", "again") and held:
            taken = held.pop(0)
            count = {"fail": -1, "half": len(taken.files) // 2}.get(step, len(taken.files))
            assert await self.finish(taken, replica, count)
            if step == "again":
                assert await self.finish(taken, replica, count)
            if count < 0:
                self.failures[taken.name] = self.failures.get(taken.name, 0) + 1
            else:
                assert taken.name not in self.rows
                self.rows[taken.name] = count

    def losers(self, taken: Taken) -> None:
        """Whoever had it before has it no more."""
        for held in self.held.values():
            for other in [one for one in held if one.name == taken.name]:
                held.remove(other)
                self.lost.append(other)

    async def finish(self, taken: Taken, replica: str, count: int) -> bool:
        request = pb.FinishMiniBatchRequest(name=taken.name, lease_id=taken.lease_id, replica=replica)
        if count < 0:
            request.failure.CopyFrom(Reason(code="$BAD", message="$x"))
            return await self.mini_batches.fail(request, RETRIES)
        request.results.append(File(path=f"${taken.name.rpartition('/')[2]}", sha256=taken.lease_id * 2))
        request.succeeded_file_count = request.row_count = count
        return await self.mini_batches.succeed(request)

    async def drain(self) -> None:
        """All that is left is scored by one that takes over from everybody."""
        for replica in self.held:
            while self.held[replica]:
                await self.take("succeed", int(replica[1]))
        while taken := await self.mini_batches.take(self.job.name, SCORE, "r9", [], datetime.now(UTC)):
            assert await self.finish(taken, "r9", len(taken.files))
            self.rows[taken.name] = len(taken.files)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(steps=STEPS)
async def test_each_file_ends_in_one_result(steps: Any, stores: tuple[Store, BatchStore]) -> None:
    store, batches = stores
    history = History(batches.mini_batches, await new_job(store, batches))
    for step, number in steps:
        await history.take(step, number)
    await history.drain()
    name = history.job.name
    items, _ = await batches.mini_batches.page(pb.ListMiniBatchesRequest(parent=name))
    assert len(items) == 6
    for item in items:
        if item.name in history.rows:
            assert (item.state, item.row_count) == (
                pb.MINI_BATCH_STATE_SUCCEEDED,
                history.rows[item.name],
            )
            assert [file.path for file in item.results] == [f"${item.name.rpartition('/')[2]}"]
            assert history.failures.get(item.name, 0) <= RETRIES
        else:
            assert (item.state, history.failures[item.name]) == (pb.MINI_BATCH_STATE_FAILED, RETRIES + 1)
            assert item.reason == Reason(code="$BAD", message="$x")
    progress = await batches.mini_batches.progress(name)
    assert progress.mini_batch_count == len(items)
    assert progress.succeeded_mini_batch_count + progress.failed_mini_batch_count == len(items)
    assert progress.succeeded_file_count == progress.row_count == sum(history.rows.values())
    assert progress.succeeded_file_count + progress.failed_file_count == len(FILES) == progress.file_count
    assert not await batches.mini_batches.is_open(name)
    fact = domain.settle(history.job, progress, False, domain.Failure(), now())
    assert fact is not None
    scored = history.job.state == domain.FINALIZING
    assert scored == (progress.succeeded_file_count > 0)


async def test_a_job_without_its_mini_batches_ends(stores: tuple[Store, BatchStore]) -> None:
    """As in a database that was made of the journal again, which holds the job alone."""
    store, batches = stores
    job = await new_job(store, batches)

    def finalizing(found: pb.BatchJob) -> Fact:
        found.state = domain.FINALIZING
        return Fact("finalizing", "TEST")

    job = await batches.jobs.update(job.name, finalizing)
    nobody: Any = None
    await Settler(store, batches, nobody, nobody)._attend(job)
    ended = await batches.jobs.get(job.name)
    assert (ended.state, ended.reason.code) == (domain.FAILED, "RESULTS_NOT_MERGED")
    assert ended.reason.cure


async def new_job(store: Store, batches: BatchStore) -> pb.BatchJob:
    """A job of 11 files in 6 mini-batches, on a deployment that is there."""
    endpoint = endpoints_pb2.Endpoint(
        name=ENDPOINT, state=SUCCEEDED, kind=endpoints_pb2.ENDPOINT_KIND_BATCH, traffic={"blue": 100}
    )
    batch = filled(BatchSettings(mini_batch_size=2))
    deployment = endpoints_pb2.Deployment(
        name=f"{ENDPOINT}/deployments/blue",
        state=SUCCEEDED,
        rollout=1,
        workload=Workload(batch_settings=batch),
    )
    if await store.endpoints.find(ENDPOINT) is None:
        await store.endpoints.create(endpoint, Fact("created", "TEST"))
        await store.deployments.create(deployment, Fact("created", "TEST"))
    request = pb.CreateBatchJobRequest(parent=ENDPOINT, input="workspaces/demo/datasets/d/versions/1")
    job = requests.new(request, f"job-{secrets.token_hex(6)}", deployment, request.input, "users/tester")
    return await batches.create(job, requests.cut(job, FILES), "", "")
