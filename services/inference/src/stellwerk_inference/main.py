"""Composition root of inference."""

import aiohttp

from stellwerk_inference.autoscale.scaler import Autoscaler
from stellwerk_inference.autoscale.service import LoadService
from stellwerk_inference.batches.compose import Parts, batch_scoring
from stellwerk_inference.batches.store import BatchStore
from stellwerk_inference.changes import Changes
from stellwerk_inference.collected.retention import Retention
from stellwerk_inference.collected.service import CollectionService
from stellwerk_inference.collected.store import CollectedStore
from stellwerk_inference.config import InferenceSettings
from stellwerk_inference.events import CONSUMED, CONSUMER, AllocationEvents
from stellwerk_inference.keys.service import EndpointKeyService
from stellwerk_inference.lifecycle import Lifecycle
from stellwerk_inference.metrics import Starts
from stellwerk_inference.monitors.compose import monitoring
from stellwerk_inference.monitors.store import MonitorStore
from stellwerk_inference.probes import Prober
from stellwerk_inference.replacements import Replacer
from stellwerk_inference.samples import Samples
from stellwerk_inference.service import EndpointService
from stellwerk_inference.store import Store
from stellwerk_inference.upstream import Upstream
from stellwerk_inference.workspace_data import workspace_data
from stellwerk_platform import telemetry
from stellwerk_platform.app import App, Service, run
from stellwerk_platform.grpc_server import Registration
from stellwerk_protos.inference.v1 import (
    collections_pb2,
    collections_pb2_grpc,
    endpoints_pb2,
    endpoints_pb2_grpc,
    keys_pb2,
    keys_pb2_grpc,
    loads_pb2,
    loads_pb2_grpc,
)
from stellwerk_protos.registry.v1.blobs_pb2_grpc import BlobServiceStub
from stellwerk_protos.runs.v1.logs_pb2_grpc import LogServiceStub
from stellwerk_protos.secrets.v1.tokens_pb2_grpc import TokenServiceStub


async def compose(app: App, settings: InferenceSettings) -> None:
    """Builds the service."""
    service = await Service.open(app, settings)
    store = Store(service.database)
    await store.open()
    collected = CollectedStore(service.database)
    await collected.open()
    batches = BatchStore(service.database, store, collected)
    await batches.open()
    monitors = MonitorStore(service.database)
    await monitors.open()
    changes = Changes(service.bus)
    await changes.open()
    lifecycle = Lifecycle(store, batches)
    registry = service.channel(settings.registry_address)
    upstream = Upstream(
        registry=registry,
        runs=service.channel(settings.runs_address),
        compute=service.channel(settings.compute_address),
        database=service.database,
    )
    await upstream.workspaces.follow(service.bus)
    await upstream.quotas.follow(service.bus)
    session = await app.enter(aiohttp.ClientSession())
    tokens = TokenServiceStub(service.channel(settings.secrets_address))
    logs = LogServiceStub(service.channel(settings.runs_address))
    samples = Samples(session, tokens, BlobServiceStub(registry), logs)
    retention = Retention(collected, store, upstream, settings.blob_grace_seconds)
    app.background(retention.run())
    meters = telemetry.meter_provider("inference", settings, app.identity)
    if meters is not None:
        app.close(lambda: meters.shutdown(2_000))
    starts = Starts(meters)
    prober = Prober(store, lifecycle, changes, session, samples, starts, settings.replica_ready_seconds)
    app.background(prober.run())
    app.background(Replacer(store, lifecycle, changes).run())
    app.background(service.bus.consume(CONSUMER, CONSUMED, AllocationEvents(lifecycle).handle))
    autoscaler = Autoscaler(store, lifecycle, service.bus)
    await autoscaler.open()
    app.background(autoscaler.run())
    await app.serve(
        settings.listen,
        service.guard,
        [
            Registration(
                EndpointService(store, lifecycle, changes, upstream),
                endpoints_pb2_grpc.add_EndpointServiceServicer_to_server,
                endpoints_pb2.DESCRIPTOR.services_by_name["EndpointService"],
            ),
            Registration(
                CollectionService(collected, store, upstream, retention, batches),
                collections_pb2_grpc.add_CollectionServiceServicer_to_server,
                collections_pb2.DESCRIPTOR.services_by_name["CollectionService"],
            ),
            Registration(
                EndpointKeyService(store),
                keys_pb2_grpc.add_EndpointKeyServiceServicer_to_server,
                keys_pb2.DESCRIPTOR.services_by_name["EndpointKeyService"],
            ),
            Registration(
                LoadService(store, lifecycle, autoscaler),
                loads_pb2_grpc.add_LoadServiceServicer_to_server,
                loads_pb2.DESCRIPTOR.services_by_name["LoadService"],
            ),
            batch_scoring(app, Parts(store, batches, lifecycle, changes, upstream), tokens),
            monitoring(app, monitors, store, collected, changes, upstream, settings.monitor_checks),
            workspace_data(service.database, upstream.workspaces, store, lifecycle, batches).registration(),
        ],
    )


if __name__ == "__main__":
    run("inference", InferenceSettings, compose)
