"""A registry that is killed between any two steps of a deletion goes on with it.

The registry is a process of its own, before the real servers and a real `secrets`. The other services
are stand-ins that count how often they were asked: what the real ones remove is tested in tests/system.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, fields
from typing import Any

import grpc
import pytest
from nats.js.errors import NotFoundError

from services.registry.tests.support import settings_of
from services.secrets.tests.support import Secrets
from stellwerk_launcher import ports
from stellwerk_launcher.testing import Servers, plaintext_command
from stellwerk_platform.auth import StaticCredentials
from stellwerk_platform.bus import Bus
from stellwerk_platform.errors import from_rpc
from stellwerk_platform.grpc_client import connect
from stellwerk_platform.mongo import Database
from stellwerk_protos.platform.v1 import platform_pb2, platform_pb2_grpc
from stellwerk_protos.registry.v1 import blobs_pb2, blobs_pb2_grpc, workspaces_pb2, workspaces_pb2_grpc
from stellwerk_registry.config import RegistrySettings

WORKSPACE = "workspaces/demo"
# Where the registry dies, in this order, each time in another life; then it lives on.
DEATHS = (
    "deletion.begun",
    "deletion.step:2",
    "workspace.removing",
    "workspace.removed",
    "deletion.step:6",
    "deletion.removed",
    "deletion.finished",
)


@dataclass
class Others(platform_pb2_grpc.WorkspaceDataServiceServicer):
    """A service with one thing that lives until it is told to end, and seven documents."""

    living: list[str] = field(default_factory=lambda: [f"{WORKSPACE}/runs/long"])
    documents: int = 7
    removed: int = 0

    async def CountWorkspaceData(
        self, request: platform_pb2.CountWorkspaceDataRequest, context: Any
    ) -> platform_pb2.WorkspaceData:
        return platform_pb2.WorkspaceData(counts={"runs": self.documents}, living=self.living)

    async def RemoveWorkspaceData(
        self, request: platform_pb2.RemoveWorkspaceDataRequest, context: Any
    ) -> platform_pb2.WorkspaceData:
        if self.living:
            return platform_pb2.WorkspaceData(living=[self.living.pop()])
        found, self.documents = self.documents, 0
        self.removed += found
        return platform_pb2.WorkspaceData(counts={"runs": found} if found else {})


@asynccontextmanager
async def registry(settings: RegistrySettings, failpoint: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The service as a process that dies at a place."""
    variables = {
        f"STELLWERK_{one.name.upper()}": str(getattr(settings, one.name)) for one in fields(settings)
    }
    process = await asyncio.create_subprocess_exec(
        *plaintext_command("registry", "RegistrySettings"),
        env={**os.environ, **variables, "STELLWERK_FAILPOINT": failpoint},
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


@asynccontextmanager
async def others() -> AsyncIterator[tuple[Others, str]]:
    """The stand-ins, and their address."""
    servicer, server = Others(), grpc.aio.server()
    platform_pb2_grpc.add_WorkspaceDataServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield servicer, f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@pytest.mark.timeout(900)
@pytest.mark.faults
async def test_a_killed_registry_goes_on_with_a_deletion(servers: Servers) -> None:
    secrets = Secrets(servers)
    listen = f"127.0.0.1:{ports.choose(['registry'], {})['registry']}"
    async with secrets.run(), others() as (servicer, address):
        settings = settings_of(servers, secrets, listen, others=address)
        async with connect(listen, StaticCredentials(secrets.owner_key)) as channel:
            stub = workspaces_pb2_grpc.WorkspaceServiceStub(channel)
            for death in DEATHS:
                async with registry(settings, death) as process:
                    if death == DEATHS[0]:
                        await begin(stub)
                    async with asyncio.timeout(200):
                        assert await process.wait() == -signal.SIGKILL, death
            deletion = await recorded(servers, secrets)
            async with registry(settings, ""):
                request = workspaces_pb2.GetWorkspaceDeletionRequest(name=deletion)
                found = await stub.GetWorkspaceDeletion(request, timeout=200)
                assert found.HasField("end_time")
                assert found.workspace == WORKSPACE
                assert servicer.removed == 7
                await check_new_one(stub)
                await check_events(servers, secrets.namespace, deletion)
    await clean(servers, secrets)


async def recorded(servers: Servers, secrets: Secrets) -> str:
    """The one deletion that there is."""
    database = Database(servers.mongodb_uri, secrets.namespace, "registry")
    (document,) = await database.raw["workspace_deletions"].find().to_list(2)
    database.close()
    return str(document["_id"])


async def begun(stub: "workspaces_pb2_grpc.WorkspaceServiceAsyncStub") -> str:
    """The deletion that goes on."""
    request = workspaces_pb2.DeleteWorkspaceRequest(name=WORKSPACE, force=True)
    return (await stub.DeleteWorkspace(request, timeout=200)).deletion


async def begin(stub: "workspaces_pb2_grpc.WorkspaceServiceAsyncStub") -> None:
    """Makes a workspace and begins to delete it; it takes nothing new then."""
    await stub.CreateWorkspace(workspaces_pb2.CreateWorkspaceRequest(workspace_id="demo"), timeout=200)
    request = workspaces_pb2.DeleteWorkspaceRequest(name=WORKSPACE)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.DeleteWorkspace(request)
    error = from_rpc(caught.value)
    assert (error.reason, "runs/long" in error.message) == ("WORKSPACE_IN_USE", True)
    preview = await stub.DeleteWorkspace(
        workspaces_pb2.DeleteWorkspaceRequest(name=WORKSPACE, validate_only=True)
    )
    assert (preview.data["runs"].counts["runs"], preview.deletion) == (7, "")
    request.force = True
    try:
        await stub.DeleteWorkspace(request)
    except grpc.aio.AioRpcError as error:
        # It may die before its answer has left.
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise


async def check_new_one(stub: "workspaces_pb2_grpc.WorkspaceServiceAsyncStub") -> None:
    """The name can be used again, and nothing of the old one is there."""
    made = await stub.CreateWorkspace(
        workspaces_pb2.CreateWorkspaceRequest(workspace_id="demo", description="another")
    )
    assert (made.revision, made.description, made.HasField("delete_time")) == (1, "another", False)


async def check_events(servers: Servers, namespace: str, deletion: str) -> None:
    """The platform remembers the deletion."""
    async with Bus.connect(servers.nats_url, namespace, "test") as bus:
        subject = bus.names.subject("journal", "_", "registry", "workspace_deletion", "completed")
        async with asyncio.timeout(60):
            while True:
                info = await bus.jetstream.stream_info(bus.names.stream("JOURNAL"), subjects_filter=subject)
                if info.state.subjects:
                    break
                await asyncio.sleep(0.1)
        message = await bus.jetstream.get_last_msg(bus.names.stream("JOURNAL"), subject)
        assert deletion.encode() in (message.data or b"")


async def clean(servers: Servers, secrets: Secrets) -> None:
    """Leaves nothing behind on the session's servers."""
    for service in ("secrets", "registry"):
        database = Database(servers.mongodb_uri, secrets.namespace, service)
        await database.client.drop_database(database.raw.name)
        database.close()
    async with Bus.connect(servers.nats_url, secrets.namespace, "test") as bus:
        for stream in ("JOURNAL", "DEADLETTER", "REDELIVERY", "ACTIVITY"):
            with suppress(NotFoundError):
                await bus.jetstream.delete_stream(bus.names.stream(stream))


async def test_a_workspace_that_is_being_deleted_takes_nothing_new(servers: Servers) -> None:
    secrets = Secrets(servers)
    listen = f"127.0.0.1:{ports.choose(['registry'], {})['registry']}"
    # What lives there does not end, so that the deletion stays where it is.
    async with secrets.run(), others() as (servicer, address):
        servicer.living *= 1_000
        settings = settings_of(servers, secrets, listen, others=address)
        owner = StaticCredentials(secrets.owner_key)
        async with registry(settings, ""), connect(listen, owner) as channel:
            stub = workspaces_pb2_grpc.WorkspaceServiceStub(channel)
            await begin(stub)
            assert await begun(stub) == await begun(stub)
            blobs = blobs_pb2_grpc.BlobServiceStub(channel)
            upload = blobs_pb2.PrepareUploadsRequest(
                parent=WORKSPACE, blobs=[blobs_pb2.Blob(sha256="0" * 64, size_bytes=1)]
            )
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await blobs.PrepareUploads(upload)
            assert from_rpc(caught.value).reason == "WORKSPACE_BEING_DELETED"
            found = await stub.GetWorkspace(workspaces_pb2.GetWorkspaceRequest(name=WORKSPACE))
            assert found.HasField("delete_time")
    await clean(servers, secrets)
