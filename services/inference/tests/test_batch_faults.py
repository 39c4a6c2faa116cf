"""`inference` is killed at each step of a batch job: each file is scored, and counted, once."""

import asyncio
import signal

import pytest

from services.inference.tests.batch_support import batch_deployment, ended, submit, worker
from services.inference.tests.support import Inference, Journal, Scorer
from stellwerk_inference.batches import domain
from stellwerk_protos.inference.v1 import batches_pb2 as pb

pytestmark = pytest.mark.faults

# The job is written and not committed; committed and not answered; a mini-batch is leased and nobody knows;
# a result is stored and the job does not follow, twice; the results are registered and the job is not over.
DEATHS = (
    "store.before_commit",
    "store.committed",
    "batch.leased",
    "batch.item_finished",
    "batch.item_finished",
    "batch.registered",
)


@pytest.mark.timeout(900)
async def test_a_job_goes_on_wherever_the_service_dies(unstarted: Inference, scorer: Scorer) -> None:
    async with unstarted.run(), Journal().follow(unstarted.bus) as journal:
        deployment, replica = await batch_deployment(unstarted, journal, scorer, "batch-deaths")
    for death in DEATHS:
        async with unstarted.process(death) as process:
            scoring = asyncio.create_task(score(unstarted, deployment, replica))
            async with asyncio.timeout(180):
                assert await process.wait() == -signal.SIGKILL, death
            scoring.cancel()
            await asyncio.gather(scoring, return_exceptions=True)
    async with unstarted.process():
        done = await score(unstarted, deployment, replica)
    assert done.state == domain.COMPLETED, done.reason
    progress = done.progress
    assert (progress.succeeded_file_count, progress.row_count) == (25, 25)
    assert (progress.succeeded_mini_batch_count, progress.failed_mini_batch_count) == (3, 0)
    made = [v for v in unstarted.others.registered.values() if v.tags["batch_job"] == done.name]
    assert [version.name for version in made] == [done.output]


async def score(inference: Inference, deployment: str, replica: str) -> pb.BatchJob:
    """Submits as often as it takes, and works as an agent that was started anew, until the job has ended."""
    job = await submit(inference, deployment, request_id="the-one")
    async with worker(inference, replica) as agent:
        working = asyncio.create_task(agent.work())
        try:
            return await ended(inference, job.name)
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
