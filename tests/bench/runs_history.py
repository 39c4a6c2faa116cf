"""Reading 100,000 points of one metric of a run, all of them and down-sampled, over gRPC."""

import asyncio
import statistics
import struct
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc

from stellwerk_platform.auth import StaticCredentials
from stellwerk_platform.grpc_client import connect
from stellwerk_protos.registry.v1 import workspaces_pb2, workspaces_pb2_grpc
from stellwerk_protos.runs.v1 import (
    ingest_pb2,
    ingest_pb2_grpc,
    metrics_pb2,
    metrics_pb2_grpc,
    runs_pb2,
    runs_pb2_grpc,
)
from tests.bench.mlflow_peer import NAME, history_p50
from tests.bench.resources import Resources
from tests.bench.suite import Measurement, benchmark

POINTS = 100_000
BATCH = 1_000
SHORT = 1_000
ROUNDS = 20


@asynccontextmanager
async def logged(resources: Resources) -> AsyncIterator[tuple[grpc.aio.Channel, str]]:
    """A channel to the gRPC door, and an interactive run with the points of one metric."""
    status = resources.stack.status()
    key = await asyncio.to_thread(Path(status["owner_key_file"]).read_text)
    async with connect(status["grpc_address"], StaticCredentials(key.strip())) as channel:
        workspace_id = f"bench-{uuid.uuid4().hex[:8]}"
        workspace = await workspaces_pb2_grpc.WorkspaceServiceStub(channel).CreateWorkspace(
            workspaces_pb2.CreateWorkspaceRequest(workspace_id=workspace_id)
        )
        run = await runs_pb2_grpc.RunServiceStub(channel).CreateRun(
            runs_pb2.CreateRunRequest(
                parent=workspace.name,
                experiment=f"{workspace.name}/experiments/bench",
                kind=runs_pb2.RUN_KIND_INTERACTIVE,
            )
        )

        async def batches() -> AsyncIterator[ingest_pb2.AppendRequest]:
            for first in range(0, POINTS, BATCH):
                steps = range(first, first + BATCH)
                columns = ingest_pb2.MetricColumns(
                    metric="loss",
                    first_sequence=first,
                    steps=struct.pack(f"<{BATCH}q", *steps),
                    times=struct.pack(f"<{BATCH}q", *steps),
                    values=struct.pack(f"<{BATCH}d", *(1 / (1 + step) + step % 7 for step in steps)),
                )
                batch = ingest_pb2.MetricBatch(source="bench", columns=[columns])
                yield ingest_pb2.AppendRequest(run=run.name, metrics=batch)

        async for _ in ingest_pb2_grpc.IngestServiceStub(channel).Append(batches()):
            pass
        # A watch sends all that was acknowledged, as soon as it is stored.
        seen = 0
        watch = metrics_pb2_grpc.MetricServiceStub(channel).WatchMetrics(
            metrics_pb2.WatchMetricsRequest(parent=run.name)
        )
        async for answer in watch:
            seen += sum(len(one.values) // 8 for one in answer.columns)
            if seen == POINTS:
                watch.cancel()
                break
        yield channel, run.name


async def read(
    resources: Resources, sampling: "metrics_pb2.Sampling.ValueType", expected: int
) -> Measurement:
    """The median time of one call, in milliseconds."""
    async with logged(resources) as (channel, run):
        stub = metrics_pb2_grpc.MetricServiceStub(channel)
        request = metrics_pb2.GetMetricHistoriesRequest(
            parent=run.rsplit("/", 2)[0], runs=[run], metrics=["loss"], sampling=sampling, max_points=SHORT
        )
        times = []
        for _ in range(ROUNDS + 1):
            begin = time.perf_counter()
            answer = await stub.GetMetricHistories(request)
            times.append(1_000 * (time.perf_counter() - begin))
            assert len(answer.series[0].columns.values) == 8 * expected
        # The first one opens the connection.
        return Measurement(statistics.median(times[1:]), ROUNDS)


@benchmark("runs.history.exact", unit="ms (p50)", better="lower", goal=150, peer=NAME)
async def exact(resources: Resources) -> Measurement:
    """100,000 points of one metric in one answer."""
    found = await read(resources, metrics_pb2.SAMPLING_EXACT, POINTS)
    return replace(found, peer_value=await asyncio.to_thread(history_p50, POINTS))


@benchmark("runs.history.downsampled", unit="ms (p50)", better="lower", goal=30)
async def downsampled(resources: Resources) -> Measurement:
    """The same metric in 1,000 points, chosen by LTTB."""
    return await read(resources, metrics_pb2.SAMPLING_LTTB, SHORT)
