"""The runs service in this process, beside real `secrets`, `registry` and `compute`, on real servers.

Nothing is faked but the node: no agent is connected, so `compute` leaves every
allocation queued, and a test plays the rest of its life by publishing the events
that `compute` would publish.
"""

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import grpc
import httpx
import pytest

from services.secrets.tests.support import Secrets
from stellwerk_compute.config import Settings as ComputeSettings
from stellwerk_compute.main import compose as compose_compute
from stellwerk_inference.config import InferenceSettings
from stellwerk_inference.main import compose as compose_inference
from stellwerk_launcher import ports
from stellwerk_launcher.testing import Servers
from stellwerk_platform.app import App
from stellwerk_platform.auth import CallerCredentials, StaticCredentials
from stellwerk_platform.bus import Bus
from stellwerk_platform.documents import now
from stellwerk_platform.errors import PlatformError, from_rpc
from stellwerk_platform.grpc_client import connect
from stellwerk_platform.journal import Fact, entry
from stellwerk_platform.mongo import Database
from stellwerk_protos.common.v1.common_pb2 import File, Reason
from stellwerk_protos.compute.v1.computes_pb2 import Allocation
from stellwerk_protos.registry.v1 import blobs_pb2, blobs_pb2_grpc, workspaces_pb2, workspaces_pb2_grpc
from stellwerk_protos.runs.v1 import (
    artifacts_pb2_grpc,
    ingest_pb2_grpc,
    logs_pb2_grpc,
    metrics_pb2_grpc,
    retention_pb2_grpc,
    runs_pb2,
    runs_pb2_grpc,
    snapshots_pb2_grpc,
)
from stellwerk_protos.runs.v1.ingest_pb2 import (
    RECORD_KIND_ROW,
    AppendRequest,
    LogChunk,
    MetricBatch,
    Record,
    RecordBatch,
)
from stellwerk_protos.runs.v1.metrics_pb2 import GetMetricHistoryRequest
from stellwerk_registry.config import RegistrySettings
from stellwerk_registry.main import compose as compose_registry
from stellwerk_runs.config import RunsSettings
from stellwerk_runs.ingest.store import IngestStore
from stellwerk_runs.logs.store import LogStore
from stellwerk_runs.main import compose
from stellwerk_runs.metrics.domain import Points, pack, unpack
from stellwerk_runs.metrics.store import MetricStore
from stellwerk_runs.records.store import RecordStore
from stellwerk_runs.runs.store import RunStore

# Small, so that a test can fill it.
STREAM_BYTES = 4 * 1024 * 1024
# So that a test sees blobs go.
GRACE_SECONDS = 2.0
STREAMS = ("JOURNAL", "DEADLETTER", "REDELIVERY", "ACTIVITY", "METRICS", "LOGS", "RECORDS")


@dataclass(frozen=True)
class Client:
    """The service's stubs behind one key or token."""

    channel: grpc.aio.Channel

    @property
    def runs(self) -> "runs_pb2_grpc.RunServiceAsyncStub":
        return runs_pb2_grpc.RunServiceStub(self.channel)

    @property
    def snapshots(self) -> "snapshots_pb2_grpc.SnapshotServiceAsyncStub":
        return snapshots_pb2_grpc.SnapshotServiceStub(self.channel)

    @property
    def artifacts(self) -> "artifacts_pb2_grpc.ArtifactServiceAsyncStub":
        return artifacts_pb2_grpc.ArtifactServiceStub(self.channel)

    @property
    def metrics(self) -> "metrics_pb2_grpc.MetricServiceAsyncStub":
        return metrics_pb2_grpc.MetricServiceStub(self.channel)

    @property
    def logs(self) -> "logs_pb2_grpc.LogServiceAsyncStub":
        return logs_pb2_grpc.LogServiceStub(self.channel)

    @property
    def retention(self) -> "retention_pb2_grpc.RetentionServiceAsyncStub":
        return retention_pb2_grpc.RetentionServiceStub(self.channel)

    async def append(self, *requests: AppendRequest) -> list[int]:
        """Sends all, then returns the batches that were acknowledged."""
        stub = ingest_pb2_grpc.IngestServiceStub(self.channel)

        async def send() -> AsyncIterator[AppendRequest]:
            for request in requests:
                yield request

        return [answer.batch async for answer in stub.Append(send())]

    async def history(self, run: str, metric: str, page_size: int = 0) -> Points:
        """All points of a metric."""
        points, token = Points(), ""
        while True:
            answer = await self.metrics.GetMetricHistory(
                GetMetricHistoryRequest(parent=run, metric=metric, page_size=page_size, page_token=token)
            )
            assert answer.columns.first_sequence == len(points)
            columns, token = answer.columns, answer.next_page_token
            points += Points(columns.steps, columns.times, columns.values)
            if not token:
                return points


@dataclass(frozen=True)
class Platform:
    """What a test needs: the owner's stubs, and ways to play the other parts."""

    servers: Servers
    secrets: Secrets
    bus: Bus
    client: Client
    registry: grpc.aio.Channel
    settings: RunsSettings
    inference_address: str

    @asynccontextmanager
    async def as_service(self) -> AsyncIterator[Client]:
        """The stubs of another service."""
        settings = self.settings
        async with connect(self.secrets.address) as anonymous:
            login = CallerCredentials(anonymous, settings.vault_role_id, settings.vault_secret_id)
            async with connect(settings.listen, login) as channel:
                yield Client(channel)

    async def workspace(self) -> str:
        """A fresh workspace with its compute."""
        workspace_id = f"w{uuid.uuid4().hex[:10]}"
        stub = workspaces_pb2_grpc.WorkspaceServiceStub(self.registry)
        answer = await stub.CreateWorkspace(workspaces_pb2.CreateWorkspaceRequest(workspace_id=workspace_id))
        return answer.name

    async def upload(self, workspace: str, path: str, content: bytes) -> File:
        """Puts a blob as a client does and returns its entry in a file list."""
        sha256 = hashlib.sha256(content).hexdigest()
        answer = await blobs_pb2_grpc.BlobServiceStub(self.registry).PrepareUploads(
            blobs_pb2.PrepareUploadsRequest(
                parent=workspace, blobs=[blobs_pb2.Blob(sha256=sha256, size_bytes=len(content))]
            )
        )
        async with httpx.AsyncClient() as client:
            for upload in answer.uploads:
                response = await client.put(upload.url, content=content, headers=dict(upload.headers))
                response.raise_for_status()
        return File(path=path, sha256=sha256, size_bytes=len(content))

    async def run(self, workspace: str = "", run_id: str = "") -> runs_pb2.Run:
        """A submitted run."""
        return await self.client.runs.CreateRun(submit(workspace or await self.workspace(), run_id=run_id))

    async def until(self, run: str, state: "runs_pb2.RunState.ValueType") -> runs_pb2.Run:
        """The run once it has reached a state."""
        async for found in self.client.runs.WatchRun(runs_pb2.WatchRunRequest(name=run)):
            if found.state == state:
                return found
        raise AssertionError(f"{run} ended as {found.state} ({found.reason})")

    async def report(self, allocation: Allocation, verb: str) -> None:
        """Publishes an allocation's state as `compute` does."""
        allocation.update_time.CopyFrom(now())
        fact = Fact(verb, allocation.reason.code, allocation.reason.message, "services/compute")
        event = entry(self.bus.names.namespace, "compute", allocation, fact)
        await self.bus.publish(event.subject, event.body, {"Nats-Msg-Id": event.id})

    async def end(self, run: str, state: "Allocation.state.ValueType", verb: str) -> runs_pb2.Run:  # type: ignore[name-defined]
        """Ends the run's allocation."""
        queued = await self.until(run, runs_pb2.RUN_STATE_QUEUED)
        reason = Reason(code=verb.upper(), message=f"It {verb}.")
        await self.report(
            Allocation(name=queued.allocation, owner=run, revision=100, state=state, reason=reason), verb
        )
        changes = self.client.runs.WatchRun(runs_pb2.WatchRunRequest(name=run))
        return [found async for found in changes][-1]


def submit(workspace: str, **fields: object) -> runs_pb2.CreateRunRequest:
    """A request that is right; `fields` replace its own."""
    values: dict[str, object] = {
        "parent": workspace,
        "experiment": f"{workspace}/experiments/Digits.v1",
        "command": "python train.py",
        "compute": f"{workspace}/computes/local",
        **fields,
    }
    return runs_pb2.CreateRunRequest(**values)  # type: ignore[arg-type]  # the test's own fields


def points(values: Sequence[float], first_step: int = 0) -> Points:
    """Points with steps and times that count up."""
    steps = range(first_step, first_step + len(values))
    return Points(pack("q", steps), pack("q", (1_000 * step for step in steps)), pack("d", values))


def metrics(
    run: str, metric: str, some: Points, first: int = 0, source: str = "1-00000001", batch: int = 0
) -> AppendRequest:
    """An append of one metric."""
    columns = [some.columns(metric, first)]
    return AppendRequest(run=run, batch=batch, metrics=MetricBatch(source=source, columns=columns))


def text(
    run: str, data: bytes, offset: int = 0, log: str = "user_logs/std_log.txt", time: int = 0
) -> AppendRequest:
    """An append of log text."""
    return AppendRequest(run=run, log=LogChunk(log=log, offset=offset, data=data, time=time))


def records(run: str, *some: Record, first: int = 0, source: str = "1-00000001") -> AppendRequest:
    """An append of records."""
    return AppendRequest(run=run, records=RecordBatch(source=source, first_sequence=first, records=some))


def record_of(name: str) -> Record:
    """A record that is right."""
    return Record(name=name, kind=RECORD_KIND_ROW, value='{"x": 1}')


def values(some: Points) -> list[float]:
    """The values as numbers."""
    return list(unpack("d", some.values))


async def refused(call: Awaitable[object]) -> PlatformError:
    """The error of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc(caught.value)


async def collect(stream: "Iterable[object] | AsyncIterator[object]") -> list[object]:
    """All messages of a stream."""
    return [item async for item in stream]  # type: ignore[union-attr]  # calls are async iterables


def ingest_store(database: Database) -> IngestStore:
    """The writer's store alone."""
    parts = MetricStore(database), LogStore(database), RecordStore(database)
    return IngestStore(database, *parts, RunStore(database))


async def eventually(condition: Callable[[], Awaitable[bool]], timeout_seconds: float = 100.0) -> None:
    """Returns once the condition holds; for what tells nobody when it is done."""
    async with asyncio.timeout(timeout_seconds):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.05)


@asynccontextmanager
async def running(servers: Servers) -> AsyncIterator[Platform]:
    """The services in a namespace of their own, which is removed at the end."""
    secrets = Secrets(servers)
    chosen = ports.choose(["registry", "compute", "runs", "inference"], {})
    settings = settings_of(servers, secrets, chosen)
    parts = {
        "registry": (compose_registry, _registry_settings(settings, servers, chosen)),
        "compute": (compose_compute, _compute_settings(settings, chosen)),
        "runs": (compose, settings),
        # The registry asks it before it removes a blob.
        "inference": (compose_inference, _inference_settings(settings, chosen)),
    }
    async with AsyncExitStack() as stack:
        bus = await stack.enter_async_context(Bus.connect(servers.nats_url, secrets.namespace, "test"))
        stack.push_async_callback(_forget, servers, secrets, bus)
        await stack.enter_async_context(secrets.run())
        for name, (build, part) in parts.items():
            app = App(name)
            stack.push_async_callback(app.leave)
            await build(app, part)  # type: ignore[operator]  # each with its own settings
        channels = [
            await stack.enter_async_context(
                connect(f"127.0.0.1:{chosen[name]}", StaticCredentials(secrets.owner_key))
            )
            for name in ("registry", "runs")
        ]
        inference = f"127.0.0.1:{chosen['inference']}"
        yield Platform(servers, secrets, bus, Client(channels[1]), channels[0], settings, inference)


def settings_of(servers: Servers, secrets: Secrets, chosen: dict[str, int]) -> RunsSettings:
    """Settings of a runs service beside these."""
    return RunsSettings(
        namespace=secrets.namespace,
        listen=f"127.0.0.1:{chosen['runs']}",
        mongodb_uri=servers.mongodb_uri,
        nats_url=servers.nats_url,
        secrets_address=secrets.address,
        vault_role_id="runs",
        vault_secret_id=servers.secret_id("runs"),
        registry_address=f"127.0.0.1:{chosen['registry']}",
        compute_address=f"127.0.0.1:{chosen['compute']}",
        stream_bytes=STREAM_BYTES,
        blob_grace_seconds=GRACE_SECONDS,
    )


def _inference_settings(settings: RunsSettings, chosen: dict[str, int]) -> InferenceSettings:
    return InferenceSettings(
        namespace=settings.namespace,
        listen=f"127.0.0.1:{chosen['inference']}",
        mongodb_uri=settings.mongodb_uri,
        nats_url=settings.nats_url,
        secrets_address=settings.secrets_address,
        vault_role_id=settings.vault_role_id,
        vault_secret_id=settings.vault_secret_id,
        registry_address=settings.registry_address,
        runs_address=settings.listen,
        compute_address=settings.compute_address,
    )


def _registry_settings(settings: RunsSettings, servers: Servers, chosen: dict[str, int]) -> RegistrySettings:
    return RegistrySettings(
        namespace=settings.namespace,
        listen=settings.registry_address,
        mongodb_uri=settings.mongodb_uri,
        nats_url=settings.nats_url,
        secrets_address=settings.secrets_address,
        vault_role_id=settings.vault_role_id,
        vault_secret_id=settings.vault_secret_id,
        runs_address=settings.listen,
        compute_address=settings.compute_address,
        inference_address=f"127.0.0.1:{chosen['inference']}",
        telemetry_address="127.0.0.1:9",
        s3_url=servers.s3_url,
        s3_access_key=servers.s3_access_key,
        s3_secret_key=servers.s3_secret_key,
        blob_grace_seconds=GRACE_SECONDS,
    )


def _compute_settings(settings: RunsSettings, chosen: dict[str, int]) -> ComputeSettings:
    return ComputeSettings(
        namespace=settings.namespace,
        listen=settings.compute_address,
        mongodb_uri=settings.mongodb_uri,
        nats_url=settings.nats_url,
        secrets_address=settings.secrets_address,
        vault_role_id=settings.vault_role_id,
        vault_secret_id=settings.vault_secret_id,
        registry_address=settings.registry_address,
    )


async def _forget(servers: Servers, secrets: Secrets, bus: Bus) -> None:
    for stream in STREAMS:
        await bus.jetstream.delete_stream(bus.names.stream(stream))
    async with secrets.database() as database:
        for service in ("secrets", "registry", "compute", "runs", "inference"):
            await database.client.drop_database(f"{secrets.namespace}_{service}")
