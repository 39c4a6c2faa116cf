"""Members of workspaces as they themselves see it: roles, the last owner, and what strangers learn."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

import grpc
import pytest
import pytest_asyncio

from services.registry.tests.support import Registry, running
from stellwerk_launcher.testing import Servers
from stellwerk_platform.auth import StaticCredentials
from stellwerk_platform.errors import PlatformError, from_rpc
from stellwerk_platform.grpc_client import connect
from stellwerk_protos.registry.v1 import (
    blobs_pb2,
    blobs_pb2_grpc,
    members_pb2,
    members_pb2_grpc,
    workspaces_pb2,
    workspaces_pb2_grpc,
)

OWNER, READER, CONTRIBUTOR = members_pb2.ROLE_OWNER, members_pb2.ROLE_READER, members_pb2.ROLE_CONTRIBUTOR


class Person:
    """The registry as somebody sees it."""

    def __init__(self, name: str, channel: grpc.aio.Channel) -> None:
        self.name = name
        self.workspaces = workspaces_pb2_grpc.WorkspaceServiceStub(channel)
        self.members = members_pb2_grpc.MemberServiceStub(channel)
        self.blobs = blobs_pb2_grpc.BlobServiceStub(channel)

    async def set(self, workspace: str, user: str, role: "members_pb2.Role.ValueType") -> members_pb2.Member:
        name = f"{workspace}/members/{user.removeprefix('users/')}"
        return await self.members.SetMember(members_pb2.SetMemberRequest(name=name, role=role))

    async def remove(self, workspace: str, user: str) -> members_pb2.Member:
        name = f"{workspace}/members/{user.removeprefix('users/')}"
        return await self.members.RemoveMember(members_pb2.RemoveMemberRequest(name=name))

    async def read(self, workspace: str) -> workspaces_pb2.Workspace:
        return await self.workspaces.GetWorkspace(workspaces_pb2.GetWorkspaceRequest(name=workspace))

    async def listed(self) -> list[str]:
        names: list[str] = []
        token = ""
        while True:
            request = workspaces_pb2.ListWorkspacesRequest(page_size=2, page_token=token)
            answer = await self.workspaces.ListWorkspaces(request)
            names += [workspace.name for workspace in answer.workspaces]
            if not (token := answer.next_page_token):
                return names


@pytest_asyncio.fixture(scope="module")
async def registry(servers: Servers) -> AsyncIterator[Registry]:
    async with running(servers) as registry:
        yield registry


@pytest_asyncio.fixture(scope="module")
async def owner(registry: Registry) -> Person:
    return Person("users/owner", registry.channel)


@asynccontextmanager
async def person(registry: Registry, *, administrator: bool = False) -> AsyncIterator[Person]:
    """Somebody new."""
    user_id = f"p{uuid.uuid4().hex[:8]}"
    key = await registry.secrets.join(user_id, administrator=administrator)
    async with connect(registry.address, StaticCredentials(key)) as channel:
        yield Person(f"users/{user_id}", channel)


async def made(by: Person) -> str:
    request = workspaces_pb2.CreateWorkspaceRequest(workspace_id=f"m{uuid.uuid4().hex[:8]}")
    return (await by.workspaces.CreateWorkspace(request)).name


async def refused(call: Awaitable[object]) -> PlatformError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc(caught.value)


async def test_who_is_added_gets_in_and_who_is_removed_is_out(registry: Registry, owner: Person) -> None:
    workspace = await made(owner)
    async with person(registry) as alice:
        assert (await refused(alice.read(workspace))).reason == "PERMISSION_DENIED"
        added = await owner.set(workspace, alice.name, READER)
        assert (added.user, added.role, added.revision) == (alice.name, READER, 1)
        assert (await alice.read(workspace)).name == workspace
        blobs = blobs_pb2.PrepareUploadsRequest(
            parent=workspace, blobs=[blobs_pb2.Blob(sha256="0" * 64, size_bytes=1)]
        )
        assert (await refused(alice.blobs.PrepareUploads(blobs))).reason == "PERMISSION_DENIED"
        assert (await owner.set(workspace, alice.name, CONTRIBUTOR)).revision == 2
        assert (await alice.blobs.PrepareUploads(blobs)).uploads
        # Nobody raises their own role.
        assert (await refused(alice.set(workspace, alice.name, OWNER))).reason == "PERMISSION_DENIED"
        await owner.remove(workspace, alice.name)
        assert (await refused(alice.read(workspace))).reason == "PERMISSION_DENIED"
        assert (await refused(owner.remove(workspace, alice.name))).reason == "MEMBER_NOT_FOUND"
        # Revisions count on for who comes back.
        assert (await owner.set(workspace, alice.name, READER)).revision == 4


async def test_a_workspace_keeps_an_owner(registry: Registry, owner: Person) -> None:
    workspace = await made(owner)
    assert (await refused(owner.remove(workspace, owner.name))).reason == "LAST_OWNER"
    assert (await refused(owner.set(workspace, owner.name, READER))).reason == "LAST_OWNER"
    async with person(registry) as alice:
        await owner.set(workspace, alice.name, OWNER)
        # Both leave at once: one of them is left behind.
        leaving = owner.remove(workspace, owner.name), alice.remove(workspace, alice.name)
        results = await asyncio.gather(*leaving, return_exceptions=True)
        assert sorted(isinstance(result, BaseException) for result in results) == [False, True]


async def test_everybody_sees_their_own_workspaces_and_administrators_all_names(
    registry: Registry, owner: Person
) -> None:
    mine = [await made(owner) for _ in range(3)]
    async with person(registry) as alice, person(registry, administrator=True) as root:
        assert await alice.listed() == []
        for workspace in mine[:2]:
            await owner.set(workspace, alice.name, READER)
        assert await alice.listed() == sorted(mine[:2])
        # Names, but no contents, and no way in.
        assert set(mine) <= set(await root.listed())
        assert (await refused(root.read(mine[0]))).reason == "PERMISSION_DENIED"
        assert (await refused(root.set(mine[0], root.name, OWNER))).reason == "PERMISSION_DENIED"
        assert (await refused(made(alice))).reason == "PERMISSION_DENIED"
        own = await made(root)
        assert (await root.read(own)).creator == root.name
        assert (await refused(owner.read(own))).reason == "PERMISSION_DENIED"


async def test_members_are_people_that_there_are(registry: Registry, owner: Person) -> None:
    workspace = await made(owner)
    assert (await refused(owner.set(workspace, "users/nobody", READER))).reason == "USER_NOT_FOUND"
    error = await refused(owner.set(workspace, owner.name, members_pb2.ROLE_UNSPECIFIED))
    assert error.reason == "INVALID_ROLE"
    listed = await owner.members.ListMembers(members_pb2.ListMembersRequest(parent=workspace))
    assert [(member.user, member.role) for member in listed.members] == [(owner.name, OWNER)]


async def test_only_services_ask_for_the_access_of_others(owner: Person) -> None:
    request = members_pb2.GetAccessRequest(user="users/owner", workspace="workspaces/demo")
    assert (await refused(owner.members.GetAccess(request))).reason == "PERMISSION_DENIED"
