"""Searching runs by a filter and sorted by a metric, over gRPC, with 10,000 and 200,000 runs.

The runs are stored in bulk, as the documents that the service itself would have written;
each has 6 parameters, 2 tags and 8 metrics. The service runs in the client's process, so
that the time holds the work of both sides.
"""

import asyncio
import random
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc

from stellwerk_launcher.testing import guard_without_registry
from stellwerk_platform.auth import Caller
from stellwerk_platform.documents import Document, timestamp, to_document
from stellwerk_platform.grpc_server import Registration, Server
from stellwerk_platform.mongo import Database
from stellwerk_protos.compute.v1.workloads_pb2 import WORKLOAD_KIND_RUN, Workload
from stellwerk_protos.runs.v1 import runs_pb2 as pb
from stellwerk_protos.runs.v1 import runs_pb2_grpc
from stellwerk_runs.runs.service import Parts, RunService
from stellwerk_runs.runs.store import RunStore
from stellwerk_runs.search import fields
from tests.bench.mlflow_peer import NAME, search_p50
from tests.bench.resources import Resources
from tests.bench.suite import Measurement, benchmark, percentile

WORKSPACE = "workspaces/bench"
METRICS = ("accuracy", "loss", "val.accuracy", "val.loss", "auc", "f1", "epoch", "lr")
BATCH = 2_000
ROUNDS = 40
WARM_ROUNDS = 3
PAGE = 50
SEARCHES = (
    ('metrics.accuracy > 0.9 AND params.model = "mlp"', "metrics.accuracy desc"),
    ("metrics.`val.loss` < 0.2 AND params.lr <= 0.01 AND status = 'completed'", "metrics.`val.loss`"),
    ("metrics.accuracy > 0.5 AND NOT tags.owner = 'u3'", "metrics.loss"),
    ("params.seed = 17 OR metrics.auc > 0.999", "metrics.f1 desc"),
    ("experiment IN ('e1', 'e2', 'e3') AND metrics.epoch >= 0.1", "metrics.accuracy desc"),
    ("status = 'failed'", "metrics.loss desc"),
    ("", "metrics.accuracy desc"),
)


def runs(count: int) -> Iterator[tuple[pb.Run, dict[str, float]]]:
    """Runs with the last values of their metrics, always the same."""
    chance, begin = random.Random(count), datetime(2026, 1, 1, tzinfo=UTC)
    for number in range(count):
        name = f"{WORKSPACE}/runs/amber-fox-{chance.getrandbits(30):08x}-{number}"
        moment = timestamp(begin + timedelta(seconds=number))
        run = pb.Run(
            name=name,
            revision=5,
            create_time=moment,
            update_time=moment,
            start_time=moment,
            end_time=timestamp(begin + timedelta(seconds=number + chance.randrange(3_600))),
            creator="users/owner",
            experiment=f"{WORKSPACE}/experiments/e{number % 50}",
            display_name=f"trial {number}",
            state=pb.RUN_STATE_COMPLETED if number % 10 else pb.RUN_STATE_FAILED,
            kind=pb.RUN_KIND_COMMAND,
            root_run=name,
            workload=Workload(kind=WORKLOAD_KIND_RUN, command="python train.py"),
            params={
                "model": chance.choice(["mlp", "cnn", "svm", "tree", "boost"]),
                "lr": f"{10 ** chance.uniform(-5, 0):.6f}",
                "batch": chance.choice(["16", "32", "64", "128"]),
                "seed": str(number % 1_000),
                "optimizer": chance.choice(["adam", "sgd"]),
                "scheduler": "cosine",
            },
            tags={"owner": f"u{number % 20}", "stage": "dev"},
        )
        yield run, {metric: chance.random() for metric in METRICS}


def search_document(run: pb.Run, last: dict[str, float]) -> Document:
    """The document of `run_search` as the service's own updates leave it behind."""
    document: Document = {"_id": run.name, "metrics_version": 1}
    path = f"{fields.root('bench')}.m"
    for key, value in {**fields.changes(run), path: fields.metrics(last)}.items():
        *parents, end = key.split(".")
        at = document
        for parent in parents:
            at = at.setdefault(parent, {})
        at[end] = value
    return document


class AnyWorkspace:
    """Stands for `registry`: workspaces that exist are remembered, so it is not asked."""

    async def check_workspace(self, name: str) -> None:
        """There is every workspace."""


async def _owner(token: str) -> Caller:
    return Caller("users/owner", "User", time.time() + 3_600)


@asynccontextmanager
async def searching(resources: Resources, count: int) -> "AsyncIterator[runs_pb2_grpc.RunServiceAsyncStub]":
    """A stub of the service over so many runs."""
    database = Database(resources.servers.mongodb_uri, f"b{uuid.uuid4().hex[:8]}", "runs")
    await database.open()
    store = RunStore(database)
    whole: list[Document] = []
    small: list[Document] = []
    for run, last in runs(count):
        whole.append({**to_document(run), "workspace": "bench"})
        small.append(search_document(run, last))
        if len(whole) == BATCH:
            await store.runs.raw.insert_many(whole, ordered=False)
            await store.search.raw.insert_many(small, ordered=False)
            whole, small = [], []
    # Indexes are built faster over what is there already.
    await store.open()
    other: Any = None  # Searches need nothing else of the service.
    parts = Parts(store, other, other, other, other, AnyWorkspace(), other, other)  # type: ignore[arg-type]
    descriptor = pb.DESCRIPTOR.services_by_name["RunService"]
    registration = Registration(RunService(parts), runs_pb2_grpc.add_RunServiceServicer_to_server, descriptor)
    server = Server("127.0.0.1:0", guard_without_registry(_owner), [registration])
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield runs_pb2_grpc.RunServiceStub(channel)
    await server.stop()
    await database.client.drop_database(database.raw.name)
    database.close()


async def p95_milliseconds(resources: Resources, count: int) -> Measurement:
    """Each search in turns, the first page and the one after it."""
    samples = []
    async with searching(resources, count) as stub:
        for number in range(WARM_ROUNDS + ROUNDS):
            for text, order in SEARCHES:
                token = ""
                for _ in range(2):
                    request = pb.SearchRunsRequest(
                        parent=WORKSPACE,
                        filter=text,
                        order_by=order,
                        page_size=PAGE,
                        page_token=token,
                        metrics=["accuracy", "loss"],
                    )
                    begin = time.perf_counter()
                    answer = await stub.SearchRuns(request, metadata=(("authorization", "Bearer bench"),))
                    if number >= WARM_ROUNDS:
                        samples.append((time.perf_counter() - begin) * 1e3)
                    assert answer.runs, (text, order)
                    token = answer.next_page_token
    return Measurement(percentile(samples, 95), len(samples))


@benchmark(
    "runs.search.10k", unit="ms (p95)", better="lower", goal=20, peer=f"{NAME}, p50 with filter and sort"
)
async def search_10k(resources: Resources) -> Measurement:
    """Over 10,000 runs; the peer has as many."""
    found = await p95_milliseconds(resources, 10_000)
    return replace(found, peer_value=await asyncio.to_thread(search_p50, 10_000))


@benchmark("runs.search.200k", unit="ms (p95)", better="lower", goal=60)
async def search_200k(resources: Resources) -> Measurement:
    """Over 200,000 runs."""
    return await p95_milliseconds(resources, 200_000)
