"""Certificates between services: renewed without a dropped call, and nothing goes without the right one."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stellwerk_launcher import ports
from stellwerk_launcher.testing import Servers
from stellwerk_platform.access import Guard
from stellwerk_platform.addresses import METADATA_KEY
from stellwerk_platform.auth import Caller, StaticCredentials, current_caller
from stellwerk_platform.errors import FailedPrecondition, from_rpc
from stellwerk_platform.grpc_client import connect, open_channel
from stellwerk_platform.grpc_server import Registration, Server
from stellwerk_platform.identity import Certificate, Identity
from stellwerk_platform.settings import IdentitySettings
from stellwerk_protos.secrets.v1 import tokens_pb2
from stellwerk_protos.telemetry.v1 import telemetry_pb2

# Renewed at half of it: so much may the machine be busy with other things.
SHORT_SECONDS = 6.0
PACE_SECONDS = 0.02
TOKENS = tokens_pb2.DESCRIPTOR.services_by_name["TokenService"]
TELEMETRY = telemetry_pb2.DESCRIPTOR.services_by_name["TelemetryService"]


async def get_caller(request: tokens_pb2.GetCallerRequest, context: Any) -> tokens_pb2.Caller:
    return tokens_pb2.Caller(subject=current_caller().subject)


async def ticks(
    request: telemetry_pb2.WatchEventsRequest, context: Any
) -> AsyncIterator[telemetry_pb2.Event]:
    """One event after the other, for ever."""
    number = 0
    while True:
        number += 1
        yield telemetry_pb2.Event(sequence=number)
        await asyncio.sleep(PACE_SECONDS)


def add(servicer: None, server: grpc.aio.Server) -> None:
    unary = grpc.unary_unary_rpc_method_handler(
        get_caller,
        request_deserializer=tokens_pb2.GetCallerRequest.FromString,
        response_serializer=tokens_pb2.Caller.SerializeToString,
    )
    stream = grpc.unary_stream_rpc_method_handler(
        ticks,
        request_deserializer=telemetry_pb2.WatchEventsRequest.FromString,
        response_serializer=telemetry_pb2.Event.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(TOKENS.full_name, {"GetCaller": unary}),
            grpc.method_handlers_generic_handler(TELEMETRY.full_name, {"WatchEvents": stream}),
        )
    )


async def verify(token: str) -> Caller:
    """The token is the subject: what a token is worth is tested elsewhere."""
    role = token.partition("/")[0]
    return Caller(token, {"services": "Service", "nodes": "Node"}[role], time.time() + 60)


async def identity_of(servers: Servers, name: str, seconds: float = 600) -> Identity:
    settings = IdentitySettings(
        vault_url=servers.vault_url,
        vault_role_id=name,
        vault_secret_id=servers.secret_id(name),
        certificate_seconds=seconds,
    )
    return await Identity.open(name, settings)


@asynccontextmanager
async def kept(identity: Identity) -> AsyncIterator[Identity]:
    task = asyncio.create_task(identity.keep())
    try:
        yield identity
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def serving(identity: Identity, health_listen: str = "") -> AsyncIterator[str]:
    registrations = [Registration(None, add, TOKENS), Registration(None, lambda *_: None, TELEMETRY)]
    server = Server(
        "127.0.0.1:0", Guard(verify), registrations, identity=identity, health_listen=health_listen
    )
    await server.start()
    try:
        yield f"127.0.0.1:{server.port}"
    finally:
        await server.stop()


@dataclass
class Stub:
    """The two methods on a channel."""

    channel: grpc.aio.Channel

    def __post_init__(self) -> None:
        self.get_caller: Any = self.channel.unary_unary(
            f"/{TOKENS.full_name}/GetCaller",
            request_serializer=tokens_pb2.GetCallerRequest.SerializeToString,
            response_deserializer=tokens_pb2.Caller.FromString,
        )
        self.watch: Any = self.channel.unary_stream(
            f"/{TELEMETRY.full_name}/WatchEvents",
            request_serializer=telemetry_pb2.WatchEventsRequest.SerializeToString,
            response_deserializer=telemetry_pb2.Event.FromString,
        )


async def call(
    address: str, identity: Identity | None, subject: str = "services/registry", service: str = "runs"
) -> str:
    """The subject that the server sees; raises what gRPC raises."""
    async with connect(address, StaticCredentials(subject), identity=identity, service=service) as channel:
        request = tokens_pb2.GetCallerRequest()
        return str((await Stub(channel).get_caller(request, timeout=60, wait_for_ready=False)).subject)


async def code_of(address: str, identity: Identity | None, service: str = "runs") -> grpc.StatusCode:
    """With which a call fails: on a bare channel, which does not try again until the time is up."""
    async with open_channel(address, identity=identity, service=service) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await Stub(channel).get_caller(tokens_pb2.GetCallerRequest(), timeout=60, wait_for_ready=False)
    return caught.value.code()


async def test_renewals_drop_no_call_and_no_stream(servers: Servers) -> None:
    server, client = [await identity_of(servers, name, SHORT_SECONDS) for name in ("runs", "registry")]
    credentials = StaticCredentials("services/registry")
    async with (
        kept(server),
        kept(client),
        serving(server) as address,
        connect(address, credentials, identity=client, service="runs") as channel,
        asyncio.timeout(120),
    ):
        stub = Stub(channel)
        stream = stub.watch(telemetry_pb2.WatchEventsRequest(parent="workspaces/demo"))
        calls, first = 0, client.certificate
        async for event in stream:
            calls += 1
            assert event.sequence == calls
            answer = await stub.get_caller(tokens_pb2.GetCallerRequest(), timeout=60, wait_for_ready=False)
            assert answer.subject == "services/registry"
            if client.generation > 2 and server.generation > 2 and time.time() > first.expire_time + 1:
                break
        # The stream has outlived the certificate that it began with.
        assert calls > 3
        stream.cancel()


async def test_a_connection_needs_a_living_certificate_of_the_platform(servers: Servers) -> None:
    server = await identity_of(servers, "runs")
    client, short = [await identity_of(servers, "registry", seconds) for seconds in (600, 1)]
    async with serving(server) as address:
        assert await call(address, client) == "services/registry"
        assert await code_of(address, None) is grpc.StatusCode.UNAVAILABLE
        without = grpc.ssl_channel_credentials(server.certificate.authorities)
        override = [("grpc.ssl_target_name_override", "runs.stellwerk")]
        async with grpc.aio.secure_channel(address, without, options=override) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=60)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        stranger = self_signed(server.certificate.authorities)
        strange = Identity(client._vault, "registry", 600, stranger)
        assert await code_of(address, strange) is grpc.StatusCode.UNAVAILABLE
        # Of time itself there is no event.
        await asyncio.sleep(max(0.0, short.certificate.expire_time - time.time()) + 0.1)
        assert await code_of(address, short) is grpc.StatusCode.UNAVAILABLE


async def test_a_server_must_prove_that_it_is_the_service_that_is_called(servers: Servers) -> None:
    client = await identity_of(servers, "registry")
    async with serving(await identity_of(servers, "runs")) as address:
        assert await call(address, client, service="runs")
        assert await code_of(address, client, service="compute") is grpc.StatusCode.UNAVAILABLE


async def test_a_services_token_needs_that_services_certificate(servers: Servers) -> None:
    registry, agent = await identity_of(servers, "registry"), await identity_of(servers, "agent")
    async with serving(await identity_of(servers, "runs")) as address:
        assert await call(address, registry) == "services/registry"
        for identity, subject in (
            (registry, "services/compute"),
            (agent, "services/registry"),
            (agent, "nodes/local"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(address, identity, subject)
            assert from_rpc(caught.value).reason == "CERTIFICATE_MISMATCH"


async def test_probes_need_no_certificate_and_get_nothing_but_health(servers: Servers) -> None:
    listen = f"127.0.0.1:{ports.choose(['probes'], {})['probes']}"
    async with serving(await identity_of(servers, "runs"), listen):
        async with grpc.aio.insecure_channel(listen) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=60, wait_for_ready=True)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert await code_of(listen, None) is grpc.StatusCode.UNIMPLEMENTED


async def test_a_vault_that_is_away_for_a_while_is_waited_for(servers: Servers) -> None:
    identity = await identity_of(servers, "runs", 4)
    async with kept(identity), asyncio.timeout(200):
        pid = servers.process.kill("openbao", signal.SIGKILL)
        generation = identity.generation
        await asyncio.to_thread(servers.process.wait_until_back, "openbao", pid)
        while identity.generation == generation:  # noqa: ASYNC110  # tells nobody
            await asyncio.sleep(0.05)


async def test_wrong_credentials_are_explained(servers: Servers) -> None:
    settings = IdentitySettings(vault_url=servers.vault_url, vault_role_id="runs", vault_secret_id="wrong")
    with pytest.raises(FailedPrecondition, match="AppRole") as caught:
        await Identity.open("runs", settings)
    assert "STELLWERK_VAULT_SECRET_ID" in caught.value.cure


def self_signed(authorities: bytes) -> Certificate:
    """A certificate in the name of the registry from an authority of somebody else."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "registry.stellwerk")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("registry.stellwerk")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Certificate(certificate.public_bytes(serialization.Encoding.PEM), private, authorities, 0)


async def test_a_services_token_is_good_at_no_door_of_the_gateway(servers: Servers) -> None:
    gateway, token = await identity_of(servers, "gateway"), StaticCredentials("services/gateway")
    async with serving(await identity_of(servers, "runs")) as address:
        assert await call(address, gateway, "services/gateway") == "services/gateway"
        async with connect(address, token, identity=gateway, service="runs") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await Stub(channel).get_caller(
                    tokens_pb2.GetCallerRequest(), timeout=60, metadata=((METADATA_KEY, "192.0.2.1"),)
                )
    assert from_rpc(caught.value).reason == "CERTIFICATE_MISMATCH"
