"""Named secrets: values in Vault only, versions, compare-and-set, and what a run may read."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import grpc
import pytest

from services.secrets.tests.support import Secrets
from stellwerk_platform.auth import CallerCredentials
from stellwerk_platform.errors import (
    Aborted,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    from_rpc,
)
from stellwerk_protos.secrets.v1 import secrets_pb2 as pb
from stellwerk_protos.secrets.v1 import secrets_pb2_grpc, tokens_pb2

if TYPE_CHECKING:
    Stub = secrets_pb2_grpc.SecretServiceAsyncStub


@pytest.fixture
async def stub(secrets: Secrets) -> AsyncIterator["Stub"]:
    """As a service, which may use every secret."""
    servers = secrets.servers
    async with secrets.channel() as anonymous:
        login = CallerCredentials(anonymous, servers.vault_role_id, servers.vault_secret_id)
        async with secrets.channel(login) as channel:
            yield secrets_pb2_grpc.SecretServiceStub(channel)


@pytest.fixture
def workspace() -> str:
    return f"workspaces/w{uuid.uuid4().hex[:12]}"


async def _set(stub: "Stub", name: str, value: bytes, expected: int | None = None) -> pb.Secret:
    return await stub.SetSecret(pb.SetSecretRequest(name=name, value=value, expected_version=expected))


async def _get(stub: "Stub", name: str) -> bytes:
    return (await stub.AccessSecret(pb.AccessSecretRequest(name=name))).value


async def test_each_set_makes_a_version_and_the_latest_is_read(stub: "Stub", workspace: str) -> None:
    name = f"{workspace}/secrets/db"
    first = await _set(stub, name, b"one")
    second = await _set(stub, name, b"two \x00\xff")
    assert (first.version, second.version) == (1, 2)
    assert await _get(stub, name) == b"two \x00\xff"
    assert await _get(stub, f"{name}/versions/1") == b"one"
    found = await stub.ListSecretVersions(pb.ListSecretVersionsRequest(parent=name, page_size=1))
    assert [version.name for version in found.versions] == [f"{name}/versions/2"]
    rest = pb.ListSecretVersionsRequest(parent=name, page_token=found.next_page_token)
    assert [v.name for v in (await stub.ListSecretVersions(rest)).versions] == [f"{name}/versions/1"]
    listed = await stub.ListSecrets(pb.ListSecretsRequest(parent=workspace))
    assert [(secret.name, secret.version) for secret in listed.secrets] == [(name, 2)]


async def test_of_writers_at_the_same_time_one_wins_each_version(stub: "Stub", workspace: str) -> None:
    name = f"{workspace}/secrets/shared"
    results = await asyncio.gather(
        *(_set(stub, name, f"{number}".encode(), 0) for number in range(5)), return_exceptions=True
    )
    refused = [result for result in results if isinstance(result, grpc.aio.AioRpcError)]
    assert len(refused) == 4
    assert all(from_rpc(error).reason == "SECRET_VERSION_CHANGED" for error in refused)
    await asyncio.gather(*(_set(stub, name, f"v{number}".encode()) for number in range(5)))
    assert (await stub.GetSecret(pb.GetSecretRequest(name=name))).version == 6
    with pytest.raises(grpc.aio.AioRpcError) as stale:
        await _set(stub, name, b"x", 3)
    assert isinstance(from_rpc(stale.value), Aborted)


async def test_a_deleted_secret_comes_back_and_a_purged_one_does_not(stub: "Stub", workspace: str) -> None:
    name = f"{workspace}/secrets/gone"
    await _set(stub, name, b"value")
    await stub.DeleteSecret(pb.DeleteSecretRequest(name=name))
    for call in (_get(stub, name), _set(stub, name, b"other")):
        with pytest.raises(grpc.aio.AioRpcError) as deleted:
            await call
        assert from_rpc(deleted.value).reason == "SECRET_DELETED"
    assert not (await stub.ListSecrets(pb.ListSecretsRequest(parent=workspace))).secrets
    await stub.UndeleteSecret(pb.UndeleteSecretRequest(name=name))
    assert await _get(stub, name) == b"value"
    await stub.DeleteSecret(pb.DeleteSecretRequest(name=name, purge=True))
    for gone in (_get(stub, f"{name}/versions/1"), _get(stub, name)):
        with pytest.raises(grpc.aio.AioRpcError) as purged:
            await gone
        assert isinstance(from_rpc(purged.value), NotFound)
    assert (await _set(stub, name, b"new", 0)).version == 1


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("db", b"", "SECRET_EMPTY"),
        ("db", b"x" * (64 * 1024 + 1), "SECRET_TOO_LARGE"),
        ("a/../b", b"x", "INVALID_NAME"),
        ("a\nb", b"x", "INVALID_NAME"),
        ("x" * 10_000, b"x", "INVALID_NAME"),
    ],
)
async def test_what_cannot_be_a_secret_is_refused(
    stub: "Stub", workspace: str, name: str, value: bytes, reason: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await _set(stub, f"{workspace}/secrets/{name}", value)
    error = from_rpc(refused.value)
    assert isinstance(error, InvalidArgument)
    assert error.reason == reason


async def test_a_run_reads_what_it_names_as_it_was_when_it_began(
    secrets: Secrets, stub: "Stub", workspace: str
) -> None:
    mine, other = f"{workspace}/secrets/mine", f"{workspace}/secrets/other"
    await _set(stub, mine, b"first")
    await _set(stub, other, b"not for it")
    async with secrets.as_service() as tokens:
        request = tokens_pb2.IssueWorkloadTokenRequest(
            owner=f"{workspace}/runs/r1", secrets=[mine, f"{workspace}/secrets/never-set"]
        )
        token = (await tokens.IssueWorkloadToken(request)).token
    await _set(stub, mine, b"second")
    async with secrets.channel(token) as channel:
        run = secrets_pb2_grpc.SecretServiceStub(channel)
        assert await _get(run, mine) == b"first"
        for name in (other, f"{mine}/versions/2", f"{workspace}/secrets/never-set"):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await _get(run, name)
            assert isinstance(from_rpc(refused.value), PermissionDenied)
        with pytest.raises(grpc.aio.AioRpcError) as written:
            await _set(run, mine, b"third")
        assert isinstance(from_rpc(written.value), PermissionDenied)


async def test_a_version_whose_writer_died_is_found(secrets: Secrets, stub: "Stub", workspace: str) -> None:
    name = f"{workspace}/secrets/half"
    await _set(stub, name, b"one")
    async with secrets.database() as database:
        # As if the process had died between Vault and MongoDB.
        await database.raw["named_secrets"].delete_one({"_id": name})
    assert await _get(stub, name) == b"one"
    assert (await stub.GetSecret(pb.GetSecretRequest(name=name))).version == 1


async def test_no_value_is_in_mongodb(secrets: Secrets, stub: "Stub", workspace: str) -> None:
    value = f"needle-{uuid.uuid4().hex}"
    await _set(stub, f"{workspace}/secrets/db", value.encode())
    async with secrets.database() as database:
        for collection in await database.raw.list_collection_names():
            async for document in database.raw[collection].find({}):
                assert value not in str(document)


async def test_a_deleted_secret_is_left_out_of_new_tokens(
    secrets: Secrets, stub: "Stub", workspace: str
) -> None:
    name = f"{workspace}/secrets/late"
    await _set(stub, name, b"value")
    await stub.DeleteSecret(pb.DeleteSecretRequest(name=name))
    async with secrets.as_service() as tokens:
        request = tokens_pb2.IssueWorkloadTokenRequest(owner=f"{workspace}/runs/r1", secrets=[name])
        token = (await tokens.IssueWorkloadToken(request)).token
    async with secrets.channel(token) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await _get(secrets_pb2_grpc.SecretServiceStub(channel), name)
    assert isinstance(from_rpc(refused.value), PermissionDenied | FailedPrecondition)
