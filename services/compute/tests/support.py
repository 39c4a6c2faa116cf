"""Compute in this process on real servers, beside real `secrets` and `registry`; the node is a script.

The node is scripted because these tests are about what compute makes of a node that
lies, dies or comes back; the real agent is tested beside it and in tests/system.
"""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import grpc

from services.secrets.tests.support import Secrets
from stellwerk_compute.allocations import domain
from stellwerk_compute.config import Settings
from stellwerk_compute.main import compose
from stellwerk_launcher import ports
from stellwerk_launcher.testing import Servers
from stellwerk_platform.app import App
from stellwerk_platform.auth import CallerCredentials, StaticCredentials
from stellwerk_platform.bus import Bus
from stellwerk_platform.documents import now
from stellwerk_platform.grpc_client import connect
from stellwerk_platform.journal import Event, Fact, decode, entry
from stellwerk_protos.common.v1.common_pb2 import Phase, Reason
from stellwerk_protos.compute.v1 import agents_pb2, agents_pb2_grpc, computes_pb2, computes_pb2_grpc
from stellwerk_protos.compute.v1.workloads_pb2 import WORKLOAD_KIND_REPLICA, WORKLOAD_KIND_RUN, Workload
from stellwerk_protos.inference.v1.endpoints_pb2 import Replica
from stellwerk_protos.registry.v1 import workspaces_pb2, workspaces_pb2_grpc
from stellwerk_protos.runs.v1.runs_pb2 import Run
from stellwerk_registry.config import RegistrySettings
from stellwerk_registry.main import compose as compose_registry

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
_WAIT_SECONDS = 60


class Journal:
    """What compute has published, in order."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._arrived = asyncio.Condition()

    async def take(self, body: bytes) -> None:
        async with self._arrived:
            self.events.append(decode(body))
            self._arrived.notify_all()

    async def until(self, resource: str, verb: str, code: str = "") -> Event:
        """The first event of a resource with this verb (and reason code)."""

        def found() -> Event | None:
            for event in self.events:
                if event.resource == resource and event.verb == verb and code in ("", event.reason["code"]):
                    return event
            return None

        async with asyncio.timeout(_WAIT_SECONDS), self._arrived:
            await self._arrived.wait_for(found)
        event = found()
        assert event is not None
        return event

    def verbs(self, resource: str) -> list[str]:
        """All verbs of a resource."""
        return [event.verb for event in self.events if event.resource == resource]


class Agent:
    """A connection that says what the test wants and remembers what compute says."""

    def __init__(self, stub: "agents_pb2_grpc.AgentServiceAsyncStub") -> None:
        self._stub = stub
        self._outbox: asyncio.Queue[agents_pb2.ConnectRequest | None] = asyncio.Queue()
        self._heard: list[agents_pb2.ConnectResponse] = []
        self._arrived = asyncio.Condition()
        self._reader: asyncio.Task[None] | None = None

    async def _drain(self) -> AsyncIterator[agents_pb2.ConnectRequest]:
        while (request := await self._outbox.get()) is not None:
            yield request

    @asynccontextmanager
    async def connected(
        self, *held: str, slots: int = 2, node: str = "nodes/local"
    ) -> AsyncIterator["Agent"]:
        """Announces the node; afterwards it is silent."""
        announcement = agents_pb2.Announcement(node=node, pool="local", slots=slots, allocations=held)
        self._outbox.put_nowait(agents_pb2.ConnectRequest(announcement=announcement))
        self._reader = asyncio.create_task(self._read())
        try:
            yield self
        finally:
            self._outbox.put_nowait(None)
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)

    async def _read(self) -> None:
        async for response in self._stub.Connect(self._drain()):
            async with self._arrived:
                self._heard.append(response)
                self._arrived.notify_all()

    async def hear(self, kind: str, count: int = 1) -> list[agents_pb2.ConnectResponse]:
        """The messages of one kind, once there are so many."""
        async with asyncio.timeout(_WAIT_SECONDS), self._arrived:
            await self._arrived.wait_for(lambda: len(self._of(kind)) >= count)
        return self._of(kind)

    def _of(self, kind: str) -> list[agents_pb2.ConnectResponse]:
        return [response for response in self._heard if response.WhichOneof("message") == kind]

    async def assignment(self) -> agents_pb2.Assignment:
        """The first assignment."""
        return (await self.hear("assignment"))[0].assignment

    async def assigned(self, *names: str, held: Sequence[str] = ()) -> None:
        """Returns when these were assigned; heartbeats keep the node alive until then."""
        async with asyncio.timeout(_WAIT_SECONDS):
            while not set(names) <= {heard.assignment.allocation.name for heard in self._of("assignment")}:
                await self.beat(*held)

    async def refusal(self) -> None:
        """Returns or raises what ended the connection."""
        assert self._reader is not None
        await self._reader

    async def beat(self, *held: str, cpu_seconds: Mapping[str, float] | None = None) -> None:
        """A heartbeat, acknowledged."""
        count = len(self._of("heartbeat_ack"))
        heartbeat = agents_pb2.Heartbeat(allocations=held, cpu_seconds=cpu_seconds)
        self._outbox.put_nowait(agents_pb2.ConnectRequest(heartbeat=heartbeat))
        await self.hear("heartbeat_ack", count + 1)

    async def report(
        self,
        name: str,
        sequence: int,
        state: domain.State.ValueType,
        exit_code: int | None = None,
        cpu_seconds: float = 0.0,
    ) -> None:
        """A report, acknowledged."""
        report = agents_pb2.Report(
            allocation=name,
            sequence=sequence,
            state=state,
            reason=Reason(code="TEST", message="As the test says."),
            phases=[Phase(name="run_command", start_time=now())],
            exit_code=exit_code,
            cpu_seconds=cpu_seconds,
        )
        count = len(self._of("report_ack"))
        self._outbox.put_nowait(agents_pb2.ConnectRequest(report=report))
        await self.hear("report_ack", count + 1)


@dataclass
class Compute:
    """The service of one namespace, which can be stopped and started again."""

    secrets: Secrets
    bus: Bus
    journal: Journal
    settings: Settings
    channel: grpc.aio.Channel
    as_node: grpc.aio.Channel
    registry: grpc.aio.Channel
    apps: list[App] = field(init=False, default_factory=list)

    @property
    def stub(self) -> "computes_pb2_grpc.ComputeServiceAsyncStub":
        return computes_pb2_grpc.ComputeServiceStub(self.channel)

    def agent(self) -> Agent:
        """A node that is not connected yet."""
        return Agent(agents_pb2_grpc.AgentServiceStub(self.as_node))

    async def start(self) -> None:
        """Starts the service."""
        app = App("compute")
        self.apps.append(app)
        await compose(app, self.settings)

    async def stop(self) -> None:
        """Stops it."""
        await self.apps.pop().leave()

    async def workspace(self) -> str:
        """A fresh workspace."""
        request = workspaces_pb2.CreateWorkspaceRequest(workspace_id=f"w{uuid.uuid4().hex[:10]}")
        return (await workspaces_pb2_grpc.WorkspaceServiceStub(self.registry).CreateWorkspace(request)).name

    async def submit(self, workspace: str, run_id: str, compute: str = "local") -> str:
        """Says what `runs` says when a run was created; returns the name of its allocation."""
        run = Run(name=f"{workspace}/runs/{run_id}", revision=1)
        run.workload.kind = WORKLOAD_KIND_RUN
        run.workload.compute = f"{workspace}/computes/{compute}"
        await self.say("runs", run, "created")
        return domain.name_for(run.name)

    async def deploy(self, workspace: str, replica_id: str) -> str:
        """The same for a replica."""
        name = f"{workspace}/endpoints/e/deployments/d/replicas/{replica_id}"
        workload = Workload(kind=WORKLOAD_KIND_REPLICA, compute=f"{workspace}/computes/local")
        await self.say("inference", Replica(name=name, revision=1, workload=workload), "created")
        return domain.name_for(name)

    async def cancel(self, workspace: str, run_id: str) -> None:
        """Says that a person wants a run to stop."""
        await self.say("runs", Run(name=f"{workspace}/runs/{run_id}", revision=2), "cancel_requested")

    async def say(self, service: str, resource: Run | Replica, verb: str) -> None:
        """Publishes an event of another service."""
        event = entry(
            self.secrets.namespace, service, resource, Fact(verb, verb.upper(), "Because.", "users/owner")
        )
        body = json.dumps({**json.loads(event.body), "traceparent": TRACEPARENT}).encode()
        await self.bus.publish(event.subject, body, {"Nats-Msg-Id": event.id})

    async def allocation(self, name: str) -> computes_pb2.Allocation:
        """The allocation now."""
        return await self.stub.GetAllocation(computes_pb2.GetAllocationRequest(name=name))


@asynccontextmanager
async def running(servers: Servers, lease_seconds: float = 30) -> AsyncIterator[Compute]:
    """Everything in a namespace of its own, which is removed at the end."""
    secrets = Secrets(servers)
    chosen = ports.choose(["registry", "compute"], {})
    address = {name: f"127.0.0.1:{port}" for name, port in chosen.items()}
    async with AsyncExitStack() as stack:
        bus = await stack.enter_async_context(Bus.connect(servers.nats_url, secrets.namespace, "test"))
        stack.push_async_callback(_forget, secrets, bus)
        await stack.enter_async_context(secrets.run())
        registry_app = App("registry")
        stack.push_async_callback(registry_app.leave)
        await compose_registry(registry_app, _registry_settings(servers, secrets, address))
        owner = StaticCredentials(secrets.owner_key)
        anonymous = await stack.enter_async_context(connect(secrets.address))
        node = CallerCredentials(anonymous, "agent", servers.secret_id("agent"))
        channels = [
            await stack.enter_async_context(connect(address[name], as_whom))
            for name, as_whom in (("compute", owner), ("compute", node), ("registry", owner))
        ]
        settings = _settings(servers, secrets, address, lease_seconds)
        compute = Compute(secrets, bus, await _follow(bus), settings, *channels)
        try:
            await compute.start()
            yield compute
        finally:
            while compute.apps:
                await compute.stop()


def _settings(servers: Servers, secrets: Secrets, address: dict[str, str], lease_seconds: float) -> Settings:
    return Settings(
        namespace=secrets.namespace,
        listen=address["compute"],
        mongodb_uri=servers.mongodb_uri,
        nats_url=servers.nats_url,
        secrets_address=secrets.address,
        vault_role_id="compute",
        vault_secret_id=servers.secret_id("compute"),
        registry_address=address["registry"],
        lease_seconds=lease_seconds,
    )


def _registry_settings(servers: Servers, secrets: Secrets, address: dict[str, str]) -> RegistrySettings:
    return RegistrySettings(
        namespace=secrets.namespace,
        listen=address["registry"],
        mongodb_uri=servers.mongodb_uri,
        nats_url=servers.nats_url,
        secrets_address=secrets.address,
        vault_role_id="registry",
        vault_secret_id=servers.secret_id("registry"),
        runs_address="127.0.0.1:9",
        compute_address=address["compute"],
        inference_address="127.0.0.1:9",
        telemetry_address="127.0.0.1:9",
        s3_url=servers.s3_url,
        s3_access_key=servers.s3_access_key,
        s3_secret_key=servers.s3_secret_key,
    )


async def _follow(bus: Bus) -> Journal:
    journal = Journal()

    async def take(message: object) -> None:
        await journal.take(message.data)  # type: ignore[attr-defined]  # nats.py is untyped

    await bus.client.subscribe(bus.names.subject("journal", "*", "compute", ">"), cb=take)
    return journal


async def _forget(secrets: Secrets, bus: Bus) -> None:
    for stream in ("JOURNAL", "DEADLETTER", "REDELIVERY", "ACTIVITY"):
        await bus.jetstream.delete_stream(bus.names.stream(stream))
    async with secrets.database() as database:
        for service in ("secrets", "registry", "compute"):
            await database.client.drop_database(f"{secrets.namespace}_{service}")


def local(workspace: str) -> str:
    """The name of a workspace's compute."""
    return f"{workspace}/computes/local"
