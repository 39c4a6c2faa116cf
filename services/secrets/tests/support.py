"""A running `secrets` and the keys that open it."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from secrets import token_urlsafe
from typing import Any

import grpc

from stellwerk_launcher import ports
from stellwerk_launcher.testing import Servers
from stellwerk_platform.app import App
from stellwerk_platform.auth import CallerCredentials, StaticCredentials
from stellwerk_platform.bus import Bus
from stellwerk_platform.grpc_client import Credentials, connect
from stellwerk_platform.mongo import Database
from stellwerk_platform.vault import Vault
from stellwerk_protos.registry.v1 import members_pb2, members_pb2_grpc
from stellwerk_protos.secrets.v1 import (
    sessions_pb2,
    sessions_pb2_grpc,
    tokens_pb2_grpc,
    users_pb2,
    users_pb2_grpc,
)
from stellwerk_secrets.config import SecretsSettings
from stellwerk_secrets.domain import digest_of
from stellwerk_secrets.main import compose


def new_key() -> str:
    """An API key as the launcher makes them."""
    return "swk_" + token_urlsafe(32)


class Members(members_pb2_grpc.MemberServiceServicer):
    """Stands for `registry`, which comes after `secrets`: everybody owns every workspace."""

    async def GetAccess(self, request: members_pb2.GetAccessRequest, context: Any) -> members_pb2.Access:
        return members_pb2.Access(workspace=request.workspace, role=members_pb2.ROLE_OWNER)

    async def ListAccess(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    SetMember = GetMember = ListMembers = RemoveMember = ListAccess


@dataclass
class Secrets:
    """The service of one namespace; `run` starts it, also a second time."""

    servers: Servers
    owner_key: str = field(default_factory=new_key)
    otlp_key: str = field(default_factory=new_key)
    namespace: str = field(default_factory=lambda: f"t{uuid.uuid4().hex[:12]}")
    # Who knows the members of workspaces; without one, everybody owns them all.
    registry_address: str = ""
    port: int = field(default_factory=lambda: ports.choose(["secrets"], {})["secrets"])

    # Beyond what every service of these tests has.
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        members = grpc.aio.server()
        members_pb2_grpc.add_MemberServiceServicer_to_server(Members(), members)
        registry_address = f"127.0.0.1:{members.add_insecure_port('127.0.0.1:0')}"
        await members.start()
        settings = SecretsSettings(
            namespace=self.namespace,
            listen=self.address,
            mongodb_uri=self.servers.mongodb_uri,
            nats_url=self.servers.nats_url,
            vault_url=self.servers.vault_url,
            vault_role_id=self.servers.vault_role_id,
            vault_secret_id=self.servers.vault_secret_id,
            registry_address=self.registry_address or registry_address,
            owner_key_sha256=digest_of(self.owner_key),
            otlp_key_sha256=digest_of(self.otlp_key),
            nats_callout_seed=self.servers.nats_callout_seed,
            **self.settings,
        )
        app = App("secrets")
        try:
            await compose(app, settings)
            yield
        finally:
            await app.leave()
            await members.stop(None)

    @asynccontextmanager
    async def channel(self, credentials: Credentials | str | None = None) -> AsyncIterator[grpc.aio.Channel]:
        """A channel with credentials, or with a key or token as text."""
        if isinstance(credentials, str):
            credentials = StaticCredentials(credentials)
        async with connect(self.address, credentials) as channel:
            yield channel

    @asynccontextmanager
    async def stub(
        self, credentials: Credentials | str | None = None
    ) -> AsyncIterator["tokens_pb2_grpc.TokenServiceAsyncStub"]:
        async with self.channel(credentials) as channel:
            yield tokens_pb2_grpc.TokenServiceStub(channel)

    @asynccontextmanager
    async def people(self, key: str = "") -> AsyncIterator["users_pb2_grpc.UserServiceAsyncStub"]:
        """A stub about people that shows a key, the owner's unless another is given."""
        async with self.channel(key or self.owner_key) as channel:
            yield users_pb2_grpc.UserServiceStub(channel)

    @asynccontextmanager
    async def sessions(self) -> AsyncIterator["sessions_pb2_grpc.SessionServiceAsyncStub"]:
        """A stub for logins, without a key."""
        async with self.channel() as channel:
            yield sessions_pb2_grpc.SessionServiceStub(channel)

    async def join(self, user_id: str, **fields: Any) -> str:
        """Creates a person, accepts the invitation and returns the key."""
        async with self.people() as people, self.sessions() as sessions:
            request = users_pb2.CreateUserRequest(user_id=user_id, **fields)
            invitation = (await people.CreateUser(request)).invitation
            accept = sessions_pb2.AcceptInvitationRequest(invitation=invitation)
            return (await sessions.AcceptInvitation(accept)).key

    @asynccontextmanager
    async def as_service(self) -> AsyncIterator["tokens_pb2_grpc.TokenServiceAsyncStub"]:
        """A stub that shows the token of a service."""
        async with self.channel() as anonymous:
            login = CallerCredentials(anonymous, self.servers.vault_role_id, self.servers.vault_secret_id)
            async with self.stub(login) as stub:
                yield stub

    def vault(self) -> Vault:
        return Vault(self.servers.vault_url, self.servers.vault_role_id, self.servers.vault_secret_id)

    @asynccontextmanager
    async def bus(self) -> AsyncIterator[Bus]:
        """The journal of the namespace."""
        async with Bus.connect(self.servers.nats_url, self.namespace, "test") as bus:
            yield bus

    @asynccontextmanager
    async def database(self) -> AsyncIterator[Database]:
        database = Database(self.servers.mongodb_uri, self.namespace, "secrets")
        try:
            yield database
        finally:
            database.close()
