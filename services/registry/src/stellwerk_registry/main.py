"""Composition root of the registry."""

from collections.abc import Callable
from typing import Any

import grpc

from stellwerk_platform.app import App, Service, run
from stellwerk_platform.blobs import BlobStore
from stellwerk_platform.grpc_server import Registration
from stellwerk_platform.migrations import migrate
from stellwerk_protos.inference.v1.collections_pb2_grpc import CollectionServiceStub
from stellwerk_protos.inference.v1.endpoints_pb2_grpc import EndpointServiceStub
from stellwerk_protos.registry.v1 import (
    blobs_pb2,
    blobs_pb2_grpc,
    datasets_pb2,
    datasets_pb2_grpc,
    datastores_pb2,
    datastores_pb2_grpc,
    environments_pb2,
    environments_pb2_grpc,
    members_pb2,
    members_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    quotas_pb2,
    quotas_pb2_grpc,
    workspaces_pb2,
    workspaces_pb2_grpc,
)
from stellwerk_protos.runs.v1.artifacts_pb2_grpc import ArtifactServiceStub
from stellwerk_protos.secrets.v1.users_pb2_grpc import UserServiceStub
from stellwerk_registry.blobs.holders import CollectedData, Holder
from stellwerk_registry.blobs.service import BlobService
from stellwerk_registry.blobs.store import BlobIndex
from stellwerk_registry.config import RegistrySettings
from stellwerk_registry.datastores.places import Places
from stellwerk_registry.datastores.secrets import secret_reader
from stellwerk_registry.datastores.service import DatastoreService
from stellwerk_registry.datastores.store import DatastoreStore
from stellwerk_registry.deletion.compose import compose_remover
from stellwerk_registry.deletion.store import DeletionStore
from stellwerk_registry.members.service import MemberService
from stellwerk_registry.members.store import MemberStore
from stellwerk_registry.packs.store import Packs
from stellwerk_registry.quotas.service import QuotaService
from stellwerk_registry.quotas.store import QuotaStore
from stellwerk_registry.uploads.store import Uploads
from stellwerk_registry.versions.datasets import DatasetService
from stellwerk_registry.versions.environments import EnvironmentService
from stellwerk_registry.versions.models import ModelService
from stellwerk_registry.versions.store import VersionStore
from stellwerk_registry.workspace_data import workspace_data
from stellwerk_registry.workspaces.service import WorkspaceService
from stellwerk_registry.workspaces.store import WorkspaceStore

# How each servicer is added to a server, and the file that describes its service.
_SERVICES: dict[str, tuple[Callable[[Any, grpc.aio.Server], None], Any]] = {
    "WorkspaceService": (workspaces_pb2_grpc.add_WorkspaceServiceServicer_to_server, workspaces_pb2),
    "DatastoreService": (datastores_pb2_grpc.add_DatastoreServiceServicer_to_server, datastores_pb2),
    "QuotaService": (quotas_pb2_grpc.add_QuotaServiceServicer_to_server, quotas_pb2),
    "MemberService": (members_pb2_grpc.add_MemberServiceServicer_to_server, members_pb2),
    "DatasetService": (datasets_pb2_grpc.add_DatasetServiceServicer_to_server, datasets_pb2),
    "EnvironmentService": (environments_pb2_grpc.add_EnvironmentServiceServicer_to_server, environments_pb2),
    "ModelService": (models_pb2_grpc.add_ModelServiceServicer_to_server, models_pb2),
    "BlobService": (blobs_pb2_grpc.add_BlobServiceServicer_to_server, blobs_pb2),
}


async def open_blob_store(app: App, settings: RegistrySettings) -> BlobStore:
    """The platform's own store, which `stellwerk doctor` tries too."""
    store = await app.enter(
        BlobStore.connect(settings.s3_url, settings.s3_access_key, settings.s3_secret_key, settings.namespace)
    )
    app.diagnosis.add(
        "blob_store",
        "put, get and delete an object",
        lambda: store.probe("probes"),
        "See that the S3 server runs (`stellwerk logs versitygw`) and that STELLWERK_S3_URL and its keys are "
        "right.",
    )
    return store


def channels_of(service: Service, settings: RegistrySettings) -> dict[str, grpc.aio.Channel]:
    """All services that keep something of a workspace, by name."""
    return {
        "inference": service.channel(settings.inference_address),
        "runs": service.channel(settings.runs_address),
        "compute": service.channel(settings.compute_address),
        "secrets": service.channel(settings.secrets_address),
        "telemetry": service.channel(settings.telemetry_address),
    }


def registration(servicer: object) -> Registration:
    """Of a servicer, which is called like its service."""
    name = type(servicer).__name__
    add, file = _SERVICES[name]
    return Registration(servicer, add, file.DESCRIPTOR.services_by_name[name])


async def compose(app: App, settings: RegistrySettings) -> None:
    """Builds the service."""
    service = await Service.open(app, settings, MemberStore)
    members = MemberStore(service.database)
    datastores = DatastoreStore(service.database)
    workspaces = WorkspaceStore(service.database, datastores, members)
    quotas = QuotaStore(service.database)
    deletions = DeletionStore(service.database, workspaces)
    datasets = VersionStore(service.database, "datasets", datasets_pb2.DatasetVersion)
    environments = VersionStore(service.database, "environments", environments_pb2.EnvironmentVersion)
    models = VersionStore(service.database, "models", models_pb2.ModelVersion)
    for collection in (workspaces, members, datastores, quotas, deletions, datasets, environments, models):
        await collection.open()
    await migrate(service.database, [workspaces.add_parts, workspaces.add_owners])
    await workspaces.known.follow(service.bus)
    store = await open_blob_store(app, settings)
    channels = channels_of(service, settings)
    places = Places(store, workspaces, datastores, secret_reader(channels["secrets"]))
    app.defer(places.close)
    holders: list[Holder] = [datasets, models, CollectedData(CollectionServiceStub(channels["inference"]))]
    index = BlobIndex(service.database, places, holders, settings.blob_grace_seconds)
    uploads = Uploads(service.database, places, store, settings.blob_part_bytes)
    for work in (index, uploads):
        await work.open()
        app.background(work.run())
    blobs = BlobService(workspaces, places, index, quotas, uploads, Packs(index, places))
    own = workspace_data(service.database, workspaces.known, index, store)
    remover = compose_remover(deletions, own, channels, settings.workspace_end_seconds)
    app.background(remover.run())
    artifacts = ArtifactServiceStub(channels["runs"])
    endpoints = EndpointServiceStub(channels["inference"])
    servicers = [
        WorkspaceService(workspaces, deletions, remover, service.guard.memberships),
        DatastoreService(datastores, workspaces, places, index.lies_in, service.guard),
        QuotaService(quotas, workspaces, index, channels["compute"]),
        MemberService(members, service.guard.memberships, UserServiceStub(channels["secrets"])),
        DatasetService(datasets, workspaces, blobs),
        EnvironmentService(environments, workspaces),
        ModelService(models, workspaces, blobs, artifacts, endpoints),
        blobs,
    ]
    registrations = [own.registration(), *map(registration, servicers)]
    await app.serve(settings.listen, service.guard, registrations)


if __name__ == "__main__":
    run("registry", RegistrySettings, compose)
