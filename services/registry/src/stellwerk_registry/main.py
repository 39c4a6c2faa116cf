"""Composition root of the registry."""

from stellwerk_platform.app import App, Service, run
from stellwerk_platform.blobs import BlobStore
from stellwerk_platform.grpc_server import Registration
from stellwerk_protos.registry.v1 import (
    blobs_pb2,
    blobs_pb2_grpc,
    datasets_pb2,
    datasets_pb2_grpc,
    environments_pb2,
    environments_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    workspaces_pb2,
    workspaces_pb2_grpc,
)
from stellwerk_protos.runs.v1.artifacts_pb2_grpc import ArtifactServiceStub
from stellwerk_registry.blobs.service import BlobService
from stellwerk_registry.blobs.store import BlobIndex
from stellwerk_registry.config import RegistrySettings
from stellwerk_registry.versions.datasets import DatasetService
from stellwerk_registry.versions.environments import EnvironmentService
from stellwerk_registry.versions.models import ModelService
from stellwerk_registry.versions.store import VersionStore
from stellwerk_registry.workspaces.service import WorkspaceService
from stellwerk_registry.workspaces.store import WorkspaceStore


async def compose(app: App, settings: RegistrySettings) -> None:
    """Builds the service."""
    service = await Service.open(app, settings)
    workspaces = WorkspaceStore(service.database)
    datasets = VersionStore(service.database, "datasets", datasets_pb2.DatasetVersion)
    environments = VersionStore(service.database, "environments", environments_pb2.EnvironmentVersion)
    models = VersionStore(service.database, "models", models_pb2.ModelVersion)
    for collection in (workspaces, datasets, environments, models):
        await collection.open()
    store = await app.enter(
        BlobStore.connect(settings.s3_url, settings.s3_access_key, settings.s3_secret_key, settings.namespace)
    )
    index = BlobIndex(service.database, store, [datasets, models], settings.blob_grace_seconds)
    await index.open()
    blobs = BlobService(workspaces, store, index)
    artifacts = ArtifactServiceStub(service.channel(settings.runs_address))
    await app.serve(
        settings.listen,
        service.verify,
        [
            Registration(
                WorkspaceService(workspaces),
                workspaces_pb2_grpc.add_WorkspaceServiceServicer_to_server,
                workspaces_pb2.DESCRIPTOR.services_by_name["WorkspaceService"],
            ),
            Registration(
                DatasetService(datasets, workspaces, blobs),
                datasets_pb2_grpc.add_DatasetServiceServicer_to_server,
                datasets_pb2.DESCRIPTOR.services_by_name["DatasetService"],
            ),
            Registration(
                EnvironmentService(environments, workspaces),
                environments_pb2_grpc.add_EnvironmentServiceServicer_to_server,
                environments_pb2.DESCRIPTOR.services_by_name["EnvironmentService"],
            ),
            Registration(
                ModelService(models, workspaces, blobs, artifacts),
                models_pb2_grpc.add_ModelServiceServicer_to_server,
                models_pb2.DESCRIPTOR.services_by_name["ModelService"],
            ),
            Registration(
                blobs,
                blobs_pb2_grpc.add_BlobServiceServicer_to_server,
                blobs_pb2.DESCRIPTOR.services_by_name["BlobService"],
            ),
        ],
    )


if __name__ == "__main__":
    run("registry", RegistrySettings, compose)
