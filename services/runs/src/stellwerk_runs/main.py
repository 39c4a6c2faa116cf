"""Composition root of the runs service."""

from stellwerk_platform.app import App, Service, run
from stellwerk_platform.grpc_server import Registration
from stellwerk_protos.runs.v1 import (
    artifacts_pb2,
    artifacts_pb2_grpc,
    ingest_pb2,
    ingest_pb2_grpc,
    logs_pb2,
    logs_pb2_grpc,
    metrics_pb2,
    metrics_pb2_grpc,
    retention_pb2,
    retention_pb2_grpc,
    runs_pb2,
    runs_pb2_grpc,
    snapshots_pb2,
    snapshots_pb2_grpc,
)
from stellwerk_runs.artifacts.service import ArtifactService
from stellwerk_runs.artifacts.store import ArtifactStore
from stellwerk_runs.changes import Changes
from stellwerk_runs.config import RunsSettings
from stellwerk_runs.ingest.service import IngestService
from stellwerk_runs.ingest.store import IngestStore
from stellwerk_runs.ingest.streams import STREAMS, Streams
from stellwerk_runs.ingest.writer import Writer
from stellwerk_runs.logs.replicas import Owners, Replicas
from stellwerk_runs.logs.service import LogService
from stellwerk_runs.logs.store import LogStore
from stellwerk_runs.metrics.service import MetricService
from stellwerk_runs.metrics.store import MetricStore
from stellwerk_runs.records.store import RecordStore
from stellwerk_runs.retention import compose as retention
from stellwerk_runs.runs.access import Access
from stellwerk_runs.runs.events import Allocations
from stellwerk_runs.runs.leases import LeaseJudge, LeaseStore
from stellwerk_runs.runs.service import Parts, RunService
from stellwerk_runs.runs.store import RunStore
from stellwerk_runs.runs.trees import Trees
from stellwerk_runs.search.projector import Projector
from stellwerk_runs.snapshots.service import SnapshotService
from stellwerk_runs.snapshots.store import SnapshotStore
from stellwerk_runs.upstream import Compute, Registry, Secrets
from stellwerk_runs.workspace_data import workspace_data


async def compose(app: App, settings: RunsSettings) -> None:
    """Builds the service."""
    service = await Service.open(app, settings)
    database, bus = service.database, service.bus
    runs, snapshots, artifacts = RunStore(database), SnapshotStore(database), ArtifactStore(database)
    metrics, logs, records = MetricStore(database), LogStore(database), RecordStore(database)
    ingest = IngestStore(database, metrics, logs, records, runs)
    leases = LeaseStore(database, runs, settings.lease_seconds)
    trees = Trees(database, runs, leases)
    for store in (runs, leases, trees, snapshots, artifacts, metrics, logs, records, ingest):
        await store.open()
    access = Access(runs)
    service.guard.allow_also(access.allows)
    changes = Changes(bus)
    await changes.open()
    replicas = Replicas(database, bus, changes)
    await replicas.open()
    app.background(replicas.run())
    owners = Owners(runs, replicas)
    streams = Streams(bus, owners, changes)
    await streams.open(settings.stream_bytes)
    app.background(Allocations(bus, runs, leases).run())
    app.background(LeaseJudge(leases).run())
    app.background(trees.run())
    app.background(Projector(ingest, metrics, runs.search).run())
    for kind in STREAMS:
        app.background(Writer(bus, ingest, changes, kind).run())
    registry = Registry(service.channel(settings.registry_address), database)
    await registry.workspaces.follow(bus)
    await registry.quotas.follow(bus)
    for forget in (runs.forget_all, streams.forget_all, access.forget_all):
        registry.workspaces.on_change(forget)
    compute = Compute(service.channel(settings.compute_address))
    secrets = Secrets(service.channel(settings.secrets_address))
    removal = await retention.compose(
        app, database, bus, runs, snapshots, registry, settings.blob_grace_seconds
    )
    await app.serve(
        settings.listen,
        service.guard,
        [
            Registration(
                RunService(Parts(runs, snapshots, leases, trees, changes, registry, compute, secrets)),
                runs_pb2_grpc.add_RunServiceServicer_to_server,
                runs_pb2.DESCRIPTOR.services_by_name["RunService"],
            ),
            workspace_data(database, registry.workspaces, runs, trees, streams).registration(),
            Registration(
                SnapshotService(snapshots, registry),
                snapshots_pb2_grpc.add_SnapshotServiceServicer_to_server,
                snapshots_pb2.DESCRIPTOR.services_by_name["SnapshotService"],
            ),
            Registration(
                IngestService(bus, owners, streams, service.guard),
                ingest_pb2_grpc.add_IngestServiceServicer_to_server,
                ingest_pb2.DESCRIPTOR.services_by_name["IngestService"],
            ),
            Registration(
                MetricService(metrics, records, ingest, streams, changes),
                metrics_pb2_grpc.add_MetricServiceServicer_to_server,
                metrics_pb2.DESCRIPTOR.services_by_name["MetricService"],
            ),
            Registration(
                LogService(logs, streams, changes),
                logs_pb2_grpc.add_LogServiceServicer_to_server,
                logs_pb2.DESCRIPTOR.services_by_name["LogService"],
            ),
            Registration(
                ArtifactService(artifacts, runs, registry),
                artifacts_pb2_grpc.add_ArtifactServiceServicer_to_server,
                artifacts_pb2.DESCRIPTOR.services_by_name["ArtifactService"],
            ),
            Registration(
                removal,
                retention_pb2_grpc.add_RetentionServiceServicer_to_server,
                retention_pb2.DESCRIPTOR.services_by_name["RetentionService"],
            ),
        ],
    )


if __name__ == "__main__":
    run("runs", RunsSettings, compose)
