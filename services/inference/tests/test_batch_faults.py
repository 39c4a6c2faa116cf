"""`inference` is killed at each step of a batch job: each file is scored, and counted, once."""

import asyncio
import contextlib
import signal

import grpc
import pytest

from services.inference.tests.batch_support import batch_deployment, ended, submit, worker
from services.inference.tests.support import Inference, Journal, Scorer
from stellwerk_inference.batches import domain
from stellwerk_protos.inference.v1 import batches_pb2 as pb

# The job is written and not committed, and committed and not answered; a mini-batch is leased and nobody
# knows; a result is stored and the job does not follow; the last result; registered and not Completed.
pytestmark = pytest.mark.faults
DEATHS = (
    "store.before_commit:1",
    "store.committed:1",
    "batch.leased:1",
    "batch.item_finished:2",
    "batch.item_finished:3",
    "batch.registered:1",
)


@pytest.mark.timeout(240)
async def test_a_job_goes_on_wherever_the_service_dies(unstarted: Inference, scorer: Scorer) -> None:
    async with unstarted.run(), Journal().follow(unstarted.bus) as journal:
        deployment, replica = await batch_deployment(unstarted, journal, scorer, "batch-deaths")
    for number, death in enumerate(DEATHS):
        job_id = f"job-{number}"
        async with unstarted.process(death) as process:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await score(unstarted, deployment, replica, job_id)
            async with asyncio.timeout(60):
                assert await process.wait() == -signal.SIGKILL, death
        async with unstarted.process():
            name = await score(unstarted, deployment, replica, job_id)
            done = await ended(unstarted, name)
            assert done.state == domain.COMPLETED, (death, done.reason)
            progress = done.progress
            assert (progress.succeeded_file_count, progress.row_count) == (25, 25), death
            assert (progress.succeeded_mini_batch_count, progress.failed_mini_batch_count) == (3, 0), death
            made = [v for v in unstarted.others.registered.values() if v.tags["batch_job"] == name]
            assert [version.name for version in made] == [done.output], death


async def score(inference: Inference, deployment: str, replica: str, job_id: str) -> str:
    """Submits as often as it takes, and works as an agent that was started anew."""
    job = await submit(inference, deployment, job_id=job_id, request_id=f"request-{job_id}")
    async with worker(inference, replica) as agent:
        while job.state not in (*domain.ENDED, domain.FINALIZING):
            done = await agent.work()
            if done and done[-1] == "merge":
                break
            job = await inference.batches.GetBatchJob(pb.GetBatchJobRequest(name=job.name))
    return job.name
