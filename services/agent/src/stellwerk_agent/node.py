"""What every allocation on this node shares."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx

from stellwerk_agent import sdk
from stellwerk_agent.blobs import Blobs
from stellwerk_agent.config import Settings
from stellwerk_agent.environments import Environments
from stellwerk_agent.snapshots import Snapshots
from stellwerk_agent.system_metrics import Gpus
from stellwerk_protos.inference.v1 import batches_pb2_grpc, collections_pb2_grpc
from stellwerk_protos.registry.v1 import (
    blobs_pb2_grpc,
    datasets_pb2_grpc,
    environments_pb2_grpc,
    models_pb2_grpc,
)
from stellwerk_protos.runs.v1 import artifacts_pb2_grpc, ingest_pb2_grpc, snapshots_pb2_grpc
from stellwerk_protos.secrets.v1 import secrets_pb2_grpc


@dataclass(frozen=True)
class Node:
    """Services behind the one door, and caches."""

    settings: Settings
    cache: Path
    sdk_folder: Path
    environments: Environments
    blobs: Blobs
    snapshots: Snapshots
    datasets: "datasets_pb2_grpc.DatasetServiceAsyncStub"
    models: "models_pb2_grpc.ModelServiceAsyncStub"
    artifacts: "artifacts_pb2_grpc.ArtifactServiceAsyncStub"
    ingest: "ingest_pb2_grpc.IngestServiceAsyncStub"
    collections: "collections_pb2_grpc.CollectionServiceAsyncStub"
    batches: "batches_pb2_grpc.BatchServiceAsyncStub"
    secrets: "secrets_pb2_grpc.SecretServiceAsyncStub"
    gpus: Gpus

    @classmethod
    async def open(cls, settings: Settings, channel: grpc.aio.Channel, client: httpx.AsyncClient) -> "Node":
        """Makes the caches; connects to nothing yet."""
        cache = settings.folder / "cache"
        cache.mkdir(parents=True, exist_ok=True)
        registry = blobs_pb2_grpc.BlobServiceStub(channel)
        blobs = Blobs(cache, registry, client, silence_seconds=settings.collect_seconds)
        return cls(
            settings=settings,
            cache=cache,
            sdk_folder=await asyncio.to_thread(sdk.expose, cache),
            environments=Environments(cache, environments_pb2_grpc.EnvironmentServiceStub(channel)),
            blobs=blobs,
            snapshots=Snapshots(snapshots_pb2_grpc.SnapshotServiceStub(channel), blobs),
            datasets=datasets_pb2_grpc.DatasetServiceStub(channel),
            models=models_pb2_grpc.ModelServiceStub(channel),
            artifacts=artifacts_pb2_grpc.ArtifactServiceStub(channel),
            ingest=ingest_pb2_grpc.IngestServiceStub(channel),
            collections=collections_pb2_grpc.CollectionServiceStub(channel),
            batches=batches_pb2_grpc.BatchServiceStub(channel),
            secrets=secrets_pb2_grpc.SecretServiceStub(channel),
            gpus=await asyncio.to_thread(Gpus),
        )
