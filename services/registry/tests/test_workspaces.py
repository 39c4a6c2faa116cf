"""The parts of a workspace, its changes and its datastores, as a client sees them."""

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator, Awaitable

import grpc
import httpx
import pytest
import pytest_asyncio
from google.protobuf.field_mask_pb2 import FieldMask

from services.registry.tests.support import Registry, running
from stellwerk_launcher.testing import Servers
from stellwerk_platform.auth import CallerCredentials
from stellwerk_platform.errors import PlatformError, from_rpc
from stellwerk_platform.journal import Fact
from stellwerk_platform.mongo import Database
from stellwerk_protos.registry.v1 import blobs_pb2, datastores_pb2, datastores_pb2_grpc, workspaces_pb2
from stellwerk_protos.secrets.v1 import secrets_pb2, secrets_pb2_grpc
from stellwerk_registry.datastores.store import DatastoreStore
from stellwerk_registry.members.store import MemberStore
from stellwerk_registry.workspaces.store import WorkspaceStore


@pytest_asyncio.fixture(scope="module")
async def registry(servers: Servers) -> AsyncIterator[Registry]:
    async with running(servers) as registry:
        yield registry


@pytest_asyncio.fixture
async def workspace(registry: Registry) -> workspaces_pb2.Workspace:
    name = f"w-{uuid.uuid4().hex[:8]}"
    return await registry.workspaces.CreateWorkspace(workspaces_pb2.CreateWorkspaceRequest(workspace_id=name))


async def refused(call: Awaitable[object]) -> PlatformError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc(caught.value)


def update(
    workspace: workspaces_pb2.Workspace, *paths: str, revision: int = 0
) -> workspaces_pb2.UpdateWorkspaceRequest:
    return workspaces_pb2.UpdateWorkspaceRequest(
        workspace=workspace, update_mask=FieldMask(paths=paths), revision=revision
    )


def stores(registry: Registry) -> "datastores_pb2_grpc.DatastoreServiceAsyncStub":
    return datastores_pb2_grpc.DatastoreServiceStub(registry.channel)


async def upload(registry: Registry, parent: str, content: bytes) -> str:
    """Puts a blob and returns where it went."""
    sha256 = hashlib.sha256(content).hexdigest()
    blob = blobs_pb2.Blob(sha256=sha256, size_bytes=len(content))
    request = blobs_pb2.PrepareUploadsRequest(parent=parent, blobs=[blob])
    (one,) = (await registry.blobs.PrepareUploads(request)).uploads
    async with httpx.AsyncClient(trust_env=False) as client:
        (await client.put(one.url, content=content, headers=dict(one.headers))).raise_for_status()
    return one.url


async def download(registry: Registry, parent: str, content: bytes) -> tuple[str, bytes]:
    sha256 = hashlib.sha256(content).hexdigest()
    request = blobs_pb2.PrepareDownloadsRequest(parent=parent, sha256=[sha256])
    (one,) = (await registry.blobs.PrepareDownloads(request)).downloads
    async with httpx.AsyncClient(trust_env=False) as client:
        return one.url, (await client.get(one.url)).raise_for_status().content


async def test_a_workspace_comes_with_its_parts(
    registry: Registry, workspace: workspaces_pb2.Workspace
) -> None:
    assert workspace.default_datastore == f"{workspace.name}/datastores/workspacedefault"
    assert workspace.vault_path.endswith(f"{workspace.name.removeprefix('workspaces/')}/secrets")
    assert workspace.journal_subject.endswith(f".journal.{workspace.name.removeprefix('workspaces/')}.>")
    request = datastores_pb2.GetDatastoreRequest(name=workspace.default_datastore)
    assert (await stores(registry).GetDatastore(request)).prefix == workspace.name.removeprefix("workspaces/")


async def test_a_workspace_of_an_older_version_gets_its_parts(registry: Registry, servers: Servers) -> None:
    database = Database(servers.mongodb_uri, registry.secrets.namespace, "registry")
    datastores = DatastoreStore(database)
    store = WorkspaceStore(database, datastores, MemberStore(database))
    workspace = workspaces_pb2.Workspace(name="workspaces/older", creator="users/owner")
    old = await store.create(workspace, Fact("created", "REQUESTED"))
    for _ in range(2):  # the second time nothing is left to do
        await store.add_parts()
        await store.add_owners()
    found = await registry.workspaces.GetWorkspace(workspaces_pb2.GetWorkspaceRequest(name=old.name))
    assert (found.default_datastore, found.revision) == (f"{old.name}/datastores/workspacedefault", 2)
    assert await datastores.find(found.default_datastore) is not None
    database.close()


async def test_a_change_from_a_stale_revision_is_refused(
    registry: Registry, workspace: workspaces_pb2.Workspace
) -> None:
    workspace.description = "of the vision team"
    workspace.tags["cost"] = "42"
    changed = await registry.workspaces.UpdateWorkspace(update(workspace, "description", revision=1))
    assert (changed.description, dict(changed.tags), changed.revision) == ("of the vision team", {}, 2)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await registry.workspaces.UpdateWorkspace(update(workspace, "tags", revision=1))
    assert caught.value.code() is grpc.StatusCode.ABORTED
    changed = await registry.workspaces.UpdateWorkspace(update(workspace, "tags", revision=2))
    assert dict(changed.tags) == {"cost": "42"}
    error = await refused(registry.workspaces.UpdateWorkspace(update(workspace, "creator")))
    assert error.reason == "INVALID_UPDATE_MASK"


async def test_new_content_goes_to_the_new_default_and_old_content_stays_readable(
    registry: Registry, workspace: workspaces_pb2.Workspace
) -> None:
    await upload(registry, workspace.name, b"before")
    made = await stores(registry).CreateDatastore(
        datastores_pb2.CreateDatastoreRequest(parent=workspace.name, datastore_id="fast", prefix="nvme")
    )
    assert made.prefix == f"{workspace.name.removeprefix('workspaces/')}/nvme"
    workspace.default_datastore = made.name
    await registry.workspaces.UpdateWorkspace(update(workspace, "default_datastore"))
    assert "/nvme/blobs/" in await upload(registry, workspace.name, b"after")
    assert (await download(registry, workspace.name, b"before"))[1] == b"before"
    url, content = await download(registry, workspace.name, b"after")
    assert (content, "/nvme/blobs/" in url) == (b"after", True)


async def test_a_datastore_goes_only_when_nothing_needs_it(
    registry: Registry, workspace: workspaces_pb2.Workspace
) -> None:
    delete = stores(registry).DeleteDatastore
    first = datastores_pb2.DeleteDatastoreRequest(name=workspace.default_datastore)
    assert (await refused(delete(first))).reason == "DATASTORE_IS_DEFAULT"
    made = await stores(registry).CreateDatastore(
        datastores_pb2.CreateDatastoreRequest(parent=workspace.name, datastore_id="second")
    )
    workspace.default_datastore = made.name
    await registry.workspaces.UpdateWorkspace(update(workspace, "default_datastore"))
    await upload(registry, workspace.name, b"content")
    workspace.default_datastore = first.name
    await registry.workspaces.UpdateWorkspace(update(workspace, "default_datastore"))
    second = datastores_pb2.DeleteDatastoreRequest(name=made.name)
    assert (await refused(delete(second))).reason == "DATASTORE_IN_USE"


async def set_secret(registry: Registry, name: str, value: str) -> None:
    secrets = registry.secrets
    async with secrets.channel() as anonymous:
        login = CallerCredentials(anonymous, secrets.servers.vault_role_id, secrets.servers.vault_secret_id)
        async with secrets.channel(login) as channel:
            stub = secrets_pb2_grpc.SecretServiceStub(channel)
            await stub.SetSecret(secrets_pb2.SetSecretRequest(name=name, value=value.encode()))


async def test_a_store_of_ones_own_is_probed_with_the_keys_in_secrets(
    registry: Registry, workspace: workspaces_pb2.Workspace, servers: Servers
) -> None:
    names = [f"{workspace.name}/secrets/{key}" for key in ("s3-access", "s3-secret")]
    await asyncio.gather(
        set_secret(registry, names[0], servers.s3_access_key), set_secret(registry, names[1], "wrong")
    )
    request = datastores_pb2.CreateDatastoreRequest(
        parent=workspace.name,
        datastore_id="own",
        endpoint=servers.s3_url,
        bucket=registry.secrets.namespace,
        prefix="team/vision",
        access_key_secret=names[0],
        secret_key_secret=names[1],
    )
    error = await refused(stores(registry).CreateDatastore(request))
    assert error.reason == "DATASTORE_UNUSABLE"
    assert servers.s3_access_key not in str(error) + error.cure
    await set_secret(registry, names[1], servers.s3_secret_key)
    made = await stores(registry).CreateDatastore(request)
    workspace.default_datastore = made.name
    await registry.workspaces.UpdateWorkspace(update(workspace, "default_datastore"))
    assert "/team/vision/blobs/" in await upload(registry, workspace.name, b"own content")
    assert (await download(registry, workspace.name, b"own content"))[1] == b"own content"


@pytest.mark.parametrize(
    "bad",
    [
        {"endpoint": "ftp://host", "bucket": "data"},
        {"endpoint": "http://user:pw@host", "bucket": "data"},
        {"endpoint": "http://169.254.169.254", "bucket": "data"},
        {"endpoint": "http://2852039166", "bucket": "data"},
        {"endpoint": "http://0xa9.254.43518:80", "bucket": "data"},
        {"endpoint": "http://[::ffff:a9fe:a9fe]", "bucket": "data"},
        {"endpoint": "http://[fd00:ec2::254]", "bucket": "data"},
        {"endpoint": "http://host", "bucket": "UP"},
        {"bucket": "data"},
        {"prefix": "../other"},
    ],
)
async def test_a_datastore_that_cannot_be_is_refused(
    registry: Registry, workspace: workspaces_pb2.Workspace, bad: dict[str, str]
) -> None:
    secrets = {}
    if "endpoint" in bad:
        secrets = {f"{key}_key_secret": f"{workspace.name}/secrets/{key}" for key in ("access", "secret")}
    request = datastores_pb2.CreateDatastoreRequest(
        parent=workspace.name, datastore_id="bad", **bad, **secrets
    )
    assert (await refused(stores(registry).CreateDatastore(request))).reason in (
        "INVALID_DATASTORE",
        "INVALID_PATH",
    )
