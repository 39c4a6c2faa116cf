"""Batch deployments, and replicas that work on mini-batches as an agent does."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from services.inference.tests.support import WORKSPACE, Inference, Journal, Scorer, deployment_request
from stellwerk_inference import states
from stellwerk_inference.batches.domain import ENDED
from stellwerk_platform.auth import StaticCredentials
from stellwerk_platform.grpc_client import connect
from stellwerk_protos.common.v1.common_pb2 import File, Reason
from stellwerk_protos.compute.v1 import computes_pb2 as compute
from stellwerk_protos.inference.v1 import batches_pb2 as pb
from stellwerk_protos.inference.v1 import batches_pb2_grpc, endpoints_pb2
from stellwerk_protos.secrets.v1 import tokens_pb2

INPUT = f"{WORKSPACE}/datasets/digits/versions/latest"


async def batch_deployment(
    inference: Inference,
    journal: Journal,
    scorer: Scorer,
    endpoint_id: str,
    scale: endpoints_pb2.ScaleSettings | None = None,
    **settings: Any,
) -> tuple[str, str]:
    """The names of a ready batch deployment and of its replica."""
    endpoint = f"{WORKSPACE}/endpoints/{endpoint_id}"
    kind = endpoints_pb2.ENDPOINT_KIND_BATCH
    await inference.stub.CreateEndpoint(
        endpoints_pb2.CreateEndpointRequest(parent=WORKSPACE, endpoint_id=endpoint_id, kind=kind)
    )
    request = deployment_request(endpoint, "blue")
    for field, value in settings.items():
        setattr(request.batch_settings, field, value)
    if scale is not None:
        request.scale_settings.CopyFrom(scale)
    deployment = await inference.stub.CreateDeployment(request)
    replica = (await journal.next("replica.created"))["subject"]
    await inference.allocate(replica, compute.ALLOCATION_STATE_RUNNING, scorer.address)
    return (await inference.deployment(deployment.name, states.SUCCEEDED)).name, replica


async def submit(inference: Inference, deployment: str, **fields: Any) -> pb.BatchJob:
    """A job on the dataset of 25 files."""
    endpoint = deployment.rpartition("/deployments/")[0]
    request = pb.CreateBatchJobRequest(parent=endpoint, input=INPUT, **fields)
    return await inference.batches.CreateBatchJob(request)  # type: ignore[no-any-return]


async def ended(inference: Inference, job: str) -> pb.BatchJob:
    """The job once it has ended, as a watcher sees it."""
    async with asyncio.timeout(90):
        watch = inference.batches.WatchBatchJob(pb.WatchBatchJobRequest(name=job))
        seen: list[pb.BatchJob] = [one async for one in watch]
    assert seen[-1].state in ENDED
    return seen[-1]


class Worker:
    """A replica that asks for work, with its own token."""

    def __init__(self, replica: str, stub: Any) -> None:
        self.replica = replica
        self.stub = stub
        self.held: list[str] = []

    async def lease(self) -> pb.MiniBatchLease | None:
        """What it gets; it holds that until it has finished it."""
        request = pb.LeaseMiniBatchRequest(parent=self.replica, held_lease_ids=self.held)
        answer = await self.stub.LeaseMiniBatch(request, timeout=30)
        if not answer.HasField("lease"):
            return None
        self.held.append(answer.lease.lease_id)
        lease: pb.MiniBatchLease = answer.lease
        return lease

    async def finish(self, lease: pb.MiniBatchLease, results: Sequence[File] = (), **fields: Any) -> None:
        """Says what came of it: all files scored, unless `fields` say otherwise."""
        count = len(lease.files)
        request = pb.FinishMiniBatchRequest(
            name=lease.name,
            lease_id=lease.lease_id,
            replica=self.replica,
            results=results or ([] if "failure" in fields else [result_of(lease)]),
            **{"succeeded_file_count": count, "row_count": count, **fields},
        )
        await self.stub.FinishMiniBatch(request, timeout=30)
        if lease.lease_id in self.held:
            self.held.remove(lease.lease_id)

    async def fail(self, lease: pb.MiniBatchLease, message: str = "The script raised KeyError.") -> None:
        """Says that it failed."""
        await self.finish(lease, failure=Reason(code="SCRIPT_ERROR", message=message))

    async def renew(self, lease: pb.MiniBatchLease, wait_seconds: int = 0) -> None:
        """Keeps the lease."""
        request = pb.RenewMiniBatchRequest(
            name=lease.name, lease_id=lease.lease_id, replica=self.replica, wait_seconds=wait_seconds
        )
        await self.stub.RenewMiniBatch(request, timeout=30)

    async def work(self) -> list[str]:
        """Works until a merge is done; returns what it had, in order."""
        done = []
        while (lease := await self.lease()) is not None:
            await self.finish(lease)
            done.append(lease.name.rpartition("/")[2])
            if lease.merge_into:
                break
        return done


def result_of(lease: pb.MiniBatchLease) -> File:
    """The file that a piece of work makes here: its path says of what."""
    name = lease.merge_into or f"{lease.name.rpartition('/')[2]}.csv"
    return File(path=name, sha256="e" * 64, size_bytes=10)


@asynccontextmanager
async def worker(inference: Inference, replica: str) -> AsyncIterator[Worker]:
    """A replica, whose token comes from `secrets` as compute gets it."""
    async with inference.secrets.as_service() as tokens:
        issued = await tokens.IssueWorkloadToken(tokens_pb2.IssueWorkloadTokenRequest(owner=replica))
    async with connect(inference.settings.listen, StaticCredentials(issued.token)) as channel:
        yield Worker(replica, batches_pb2_grpc.BatchServiceStub(channel))
