"""A running `telemetry` on real servers, with the real `secrets` beside it."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from services.secrets.tests.support import Members, Secrets
from stellwerk_launcher import ports
from stellwerk_launcher.testing import guard_without_registry
from stellwerk_platform.app import App
from stellwerk_platform.auth import CallerCredentials, StaticCredentials, TokenVerifier
from stellwerk_platform.bus import Bus
from stellwerk_platform.errors import NotFound, from_rpc
from stellwerk_platform.grpc_client import connect
from stellwerk_platform.grpc_server import Registration, Server
from stellwerk_platform.journal import CONTENT_TYPE, Fact, entry
from stellwerk_protos.registry.v1 import members_pb2, members_pb2_grpc, workspaces_pb2, workspaces_pb2_grpc
from stellwerk_protos.telemetry.v1 import telemetry_pb2_grpc
from stellwerk_telemetry.config import TelemetrySettings
from stellwerk_telemetry.main import compose

T = TypeVar("T")
EMPTY = "workspaces/empty"


async def until(probe: Callable[[], Awaitable[T | None]]) -> T:
    """Asks until there is an answer, for at most 100 seconds."""
    async with asyncio.timeout(100):
        while True:
            found = await probe()
            if found:
                return found
            await asyncio.sleep(0.05)


class Registry(workspaces_pb2_grpc.WorkspaceServiceServicer):
    """Stands for the registry: knows every workspace but `nowhere`."""

    async def GetWorkspace(
        self, request: workspaces_pb2.GetWorkspaceRequest, context: Any
    ) -> workspaces_pb2.Workspace:
        if request.name == "workspaces/nowhere":
            raise NotFound("WORKSPACE_NOT_FOUND", f"There is no workspace {request.name}.")
        return workspaces_pb2.Workspace(name=request.name)

    async def CreateWorkspace(self, request: Any, context: Any) -> workspaces_pb2.Workspace:
        raise NotImplementedError

    async def ListWorkspaces(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    UpdateWorkspace = DeleteWorkspace = GetWorkspaceDeletion = ListWorkspaces


def registry_registrations() -> list[Registration]:
    """The stand-ins as a server wants them."""
    return [
        Registration(
            Registry(),
            workspaces_pb2_grpc.add_WorkspaceServiceServicer_to_server,
            workspaces_pb2.DESCRIPTOR.services_by_name["WorkspaceService"],
        ),
        Registration(
            Members(),
            members_pb2_grpc.add_MemberServiceServicer_to_server,
            members_pb2.DESCRIPTOR.services_by_name["MemberService"],
        ),
    ]


@dataclass
class Telemetry:
    """The service and what reaches it."""

    address: str
    secrets: Secrets
    bus: Bus

    @asynccontextmanager
    async def channel(self, key: str = "") -> AsyncIterator[grpc.aio.Channel]:
        """A channel that shows the owner's key, or another."""
        async with connect(self.address, StaticCredentials(key or self.secrets.owner_key)) as channel:
            yield channel

    @asynccontextmanager
    async def exporter(self, key: str = "") -> AsyncIterator[Any]:
        """The raw OTLP method for spans, with the exporters' key or another."""
        async with self.channel(key or self.secrets.otlp_key) as channel:
            stub: Any = trace_service_pb2_grpc.TraceServiceStub(channel)  # type: ignore[no-untyped-call]
            yield stub.Export

    @asynccontextmanager
    async def service_stub(self) -> AsyncIterator["telemetry_pb2_grpc.TelemetryServiceAsyncStub"]:
        """As a service calls, which may read all workspaces at once."""
        servers = self.secrets.servers
        async with self.secrets.channel() as secrets:
            login = CallerCredentials(secrets, servers.vault_role_id, servers.vault_secret_id)
            async with connect(self.address, login) as channel:
                yield telemetry_pb2_grpc.TelemetryServiceStub(channel)

    @asynccontextmanager
    async def stub(self) -> AsyncIterator["telemetry_pb2_grpc.TelemetryServiceAsyncStub"]:
        async with self.channel() as channel:
            yield telemetry_pb2_grpc.TelemetryServiceStub(channel)

    async def publish(self, workspace: str, count: int = 1, first: int = 1) -> list[str]:
        """Publishes events as the relay does, and returns their ids."""
        messages, ids = [], []
        for number in range(first, first + count):
            resource = workspaces_pb2.Workspace(name=f"workspaces/{workspace}", revision=number)
            made = entry(self.bus.names.namespace, "telemetry", resource, Fact("tested", "TEST"))
            messages.append((made.subject, made.body, {"Nats-Msg-Id": made.id, "Content-Type": CONTENT_TYPE}))
            ids.append(made.id)
        await self.bus.publish_many(messages)
        return ids


@asynccontextmanager
async def run(secrets: Secrets, bus: Bus) -> AsyncIterator[Telemetry]:
    """The service in this process."""
    keys = connect(secrets.address)
    registry = Server(
        "127.0.0.1:0",
        guard_without_registry(TokenVerifier(keys).verify),
        registry_registrations(),
    )
    await registry.start()
    address = f"127.0.0.1:{ports.choose(['telemetry'], {})['telemetry']}"
    servers = secrets.servers
    settings = TelemetrySettings(
        namespace=bus.names.namespace,
        listen=address,
        mongodb_uri=servers.mongodb_uri,
        nats_url=servers.nats_url,
        secrets_address=secrets.address,
        registry_address=f"127.0.0.1:{registry.port}",
        vault_role_id=servers.vault_role_id,
        vault_secret_id=servers.vault_secret_id,
    )
    app = App("telemetry")
    try:
        await compose(app, settings)
        yield Telemetry(address, secrets, bus)
    finally:
        await app.leave()
        await registry.stop()
        await keys.close()


async def reason_of(call: Any) -> str:
    """The reason code with which a call is refused."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return from_rpc(error).reason
    raise AssertionError("the call was not refused")


def new_trace_id() -> bytes:
    return uuid.uuid4().bytes


def span(trace_id: bytes, number: int, start_ns: int, **fields: Any) -> Span:
    """A span of one microsecond; its id is its number."""
    return Span(
        trace_id=trace_id,
        span_id=number.to_bytes(8, "big"),
        name=f"step {number}",
        start_time_unix_nano=start_ns,
        end_time_unix_nano=start_ns + 1_000,
        **fields,
    )


def export_request(*spans: Span, service: str = "runs") -> "trace_service_pb2.ExportTraceServiceRequest":
    request = trace_service_pb2.ExportTraceServiceRequest()
    resource_spans = request.resource_spans.add()
    attribute = resource_spans.resource.attributes.add(key="service.name")
    attribute.value.string_value = service
    resource_spans.scope_spans.add().spans.extend(spans)
    return request
