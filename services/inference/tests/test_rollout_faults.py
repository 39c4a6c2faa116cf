"""`inference` is killed at each step of a rollout: nothing is lost, nothing happens twice."""

import asyncio
import contextlib
import signal

import grpc
import pytest

from services.inference.tests.support import WORKSPACE, Inference, Scorer, deployment_request
from stellwerk_inference import states
from stellwerk_inference.replicas import domain as replicas
from stellwerk_protos.compute.v1 import computes_pb2 as compute
from stellwerk_protos.inference.v1 import endpoints_pb2 as pb

# The update is written; it is committed and not answered; the sample is scored and nobody knows; the new
# replicas take over.
pytestmark = pytest.mark.faults
DEATHS = (
    "store.before_commit:1",
    "store.committed:1",
    "inference.sample_scored:1",
    "store.before_commit:3",
)


@pytest.mark.timeout(900)
async def test_a_rollout_goes_on_wherever_the_service_dies(unstarted: Inference, scorer: Scorer) -> None:
    async with unstarted.process():
        endpoint = (await unstarted.create_endpoint("deaths")).name
        first = deployment_request(endpoint, "blue")
        name = (await unstarted.stub.CreateDeployment(first, timeout=30)).name
        await bring_up(unstarted, scorer, name)
    for number, death in enumerate(DEATHS, start=2):
        async with unstarted.process(death) as process:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await update(unstarted, name, number)
                await start(unstarted, scorer, name)
            async with asyncio.timeout(180):
                assert await process.wait() == -signal.SIGKILL, death
        async with unstarted.process():
            await update(unstarted, name, number)
            found = await bring_up(unstarted, scorer, name)
            assert (found.rollout, found.state, found.ready_replica_count) == (number, states.SUCCEEDED, 1)
            live = [r for r in await listed(unstarted, name) if r.state in replicas.LIVE]
            assert [replica.rollout for replica in live] == [number]
            mine = [r for r in await listed(unstarted, name) if r.rollout == number]
            assert len(mine) == 1, death


async def update(inference: Inference, name: str, number: int) -> None:
    """Asks for another model version, as often as it takes: the same again changes nothing."""
    request = pb.UpdateDeploymentRequest(
        name=name, models=[f"{WORKSPACE}/models/digits/versions/{1 if number % 2 == 0 else 3}"]
    )
    request.update_mask.paths.append("models")
    await inference.stub.UpdateDeployment(request, timeout=30)


async def listed(inference: Inference, name: str) -> list[pb.Replica]:
    answer = await inference.stub.ListReplicas(pb.ListReplicasRequest(parent=name), timeout=30)
    return list(answer.replicas)


async def start(inference: Inference, scorer: Scorer, name: str) -> None:
    """Compute's side: what waits is running, what is to end has ended."""
    for replica in await listed(inference, name):
        if replica.state == states.CREATING:
            await inference.allocate(replica.name, compute.ALLOCATION_STATE_RUNNING, scorer.address)
        elif replica.state == states.DELETING:
            await inference.allocate(replica.name, compute.ALLOCATION_STATE_CANCELED)


async def bring_up(inference: Inference, scorer: Scorer, name: str) -> pb.Deployment:
    """The deployment when no rollout goes on any more."""
    await start(inference, scorer, name)
    watch = inference.stub.WatchDeployment(pb.WatchDeploymentRequest(name=name), timeout=60)
    seen: list[pb.Deployment] = [one async for one in watch]
    await start(inference, scorer, name)
    return seen[-1]
