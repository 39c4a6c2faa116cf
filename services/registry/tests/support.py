"""A registry in this process, in front of the session's real servers, with a real `secrets` beside it."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import httpx

from services.secrets.tests.support import Secrets
from stellwerk_launcher import ports
from stellwerk_launcher.testing import Servers
from stellwerk_platform.app import App
from stellwerk_platform.auth import StaticCredentials
from stellwerk_platform.grpc_client import connect
from stellwerk_protos.common.v1.common_pb2 import File
from stellwerk_protos.registry.v1 import (
    blobs_pb2,
    blobs_pb2_grpc,
    datasets_pb2_grpc,
    environments_pb2_grpc,
    models_pb2_grpc,
    workspaces_pb2_grpc,
)
from stellwerk_registry.config import RegistrySettings
from stellwerk_registry.main import compose

WORKSPACE = "workspaces/demo"
PART_BYTES = 5 * 1024 * 1024


@dataclass(frozen=True)
class Registry:
    """The service's stubs, called as the owner."""

    address: str
    channel: grpc.aio.Channel
    secrets: Secrets

    @property
    def workspaces(self) -> "workspaces_pb2_grpc.WorkspaceServiceAsyncStub":
        return workspaces_pb2_grpc.WorkspaceServiceStub(self.channel)

    @property
    def datasets(self) -> "datasets_pb2_grpc.DatasetServiceAsyncStub":
        return datasets_pb2_grpc.DatasetServiceStub(self.channel)

    @property
    def environments(self) -> "environments_pb2_grpc.EnvironmentServiceAsyncStub":
        return environments_pb2_grpc.EnvironmentServiceStub(self.channel)

    @property
    def models(self) -> "models_pb2_grpc.ModelServiceAsyncStub":
        return models_pb2_grpc.ModelServiceStub(self.channel)

    @property
    def blobs(self) -> "blobs_pb2_grpc.BlobServiceAsyncStub":
        return blobs_pb2_grpc.BlobServiceStub(self.channel)

    async def upload(self, path: str, content: bytes) -> File:
        """Puts a blob as a client does and returns its entry in a file list."""
        sha256 = hashlib.sha256(content).hexdigest()
        answer = await self.blobs.PrepareUploads(
            blobs_pb2.PrepareUploadsRequest(
                parent=WORKSPACE, blobs=[blobs_pb2.Blob(sha256=sha256, size_bytes=len(content))]
            )
        )
        async with httpx.AsyncClient() as client:
            for upload in answer.uploads:
                response = await client.put(upload.url, content=content, headers=dict(upload.headers))
                response.raise_for_status()
        return File(path=path, sha256=sha256, size_bytes=len(content))


@asynccontextmanager
async def running(
    servers: Servers, secrets_settings: dict[str, Any] | None = None
) -> AsyncIterator[Registry]:
    """`secrets` and `registry` in a namespace of their own; models from runs are tested in tests/system.

    Parts are as small as S3 takes them, so that a test need not move gigabytes.
    """
    secrets = Secrets(servers, settings=secrets_settings or {})
    port = ports.choose(["registry"], {})["registry"]
    app = App("registry")
    settings = settings_of(servers, secrets, f"127.0.0.1:{port}")
    async with secrets.run():
        try:
            await compose(app, settings)
            address = f"127.0.0.1:{port}"
            async with connect(address, StaticCredentials(secrets.owner_key)) as channel:
                yield Registry(address, channel, secrets)
        finally:
            await app.leave()


def settings_of(
    servers: Servers, secrets: Secrets, listen: str, others: str = "127.0.0.1:9"
) -> RegistrySettings:
    """The settings of a registry that finds the other services at `others`."""
    return RegistrySettings(
        namespace=secrets.namespace,
        listen=listen,
        mongodb_uri=servers.mongodb_uri,
        nats_url=servers.nats_url,
        secrets_address=secrets.address,
        vault_role_id="registry",
        vault_secret_id=servers.secret_id("registry"),
        registry_address=listen,
        runs_address=others,
        compute_address=others,
        inference_address=others,
        telemetry_address=others,
        s3_url=servers.s3_url,
        s3_access_key=servers.s3_access_key,
        s3_secret_key=servers.s3_secret_key,
        blob_part_bytes=PART_BYTES,
    )
