"""A gateway in this process, before one small backend that stands for all services."""

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import grpc
import pytest

from services.gateway.tests.backend import EchoBackend
from stellwerk_gateway import catalog
from stellwerk_gateway.backends import Backends
from stellwerk_gateway.connect_door import ConnectDoor
from stellwerk_gateway.forward import Forwarder
from stellwerk_gateway.grpc_door import GrpcDoor
from stellwerk_gateway.http_door import HttpDoor, HttpServer
from stellwerk_gateway.login.cookies import Seal
from stellwerk_gateway.login.door import LoginDoor
from stellwerk_gateway.scoring.access import Access
from stellwerk_gateway.scoring.grpc import ScoringHandler
from stellwerk_gateway.scoring.router import Limits, Router
from stellwerk_gateway.scoring.routes import RouteTable
from stellwerk_gateway.scoring.tracing import Tracer
from stellwerk_launcher.testing import guard_without_registry
from stellwerk_platform.auth import Caller
from stellwerk_platform.errors import Unauthenticated

OWNER_KEY, STRANGER_KEY, GATEWAY_TOKEN = "swk_owner", "swk_stranger", "token-of-the-gateway"


async def verify(token: str) -> Caller:
    """Knows an owner and somebody who may only write telemetry."""
    roles = {OWNER_KEY: "User", STRANGER_KEY: "TelemetryWriter"}
    if token not in roles:
        raise Unauthenticated("KEY_INVALID", "The key or token is not valid.")
    return Caller(f"users/{roles[token]}", roles[token], time.time() + 60)


async def issue(endpoint: str) -> str:
    """Stands for `secrets`, whose tokens for endpoints are tested there and in tests/system."""
    return GATEWAY_TOKEN


@pytest.fixture
async def table() -> AsyncIterator[RouteTable]:
    table = RouteTable(issue, patience_seconds=0.05, default_timeout_seconds=60)
    yield table
    await table.close()


@pytest.fixture
def limits(request: pytest.FixtureRequest) -> Limits:
    """Small sizes, so that a test can reach them; times are long unless a test asks for short ones."""
    sizes = Limits(max_body_bytes=1_000_000, held_body_bytes=10_000, held_bytes=600_000)
    return replace(sizes, **getattr(request, "param", {}))


@pytest.fixture
def patience_seconds(request: pytest.FixtureRequest) -> float:
    """How long a call waits for its backend: not for long where a test has it wait in vain."""
    return float(getattr(request, "param", 60.0))


@pytest.fixture
def router(table: RouteTable, limits: Limits) -> Router:
    access = Access(guard_without_registry(verify), issue, table)
    table.on_lock_change(access.forget)
    return Router(table, access, limits, Tracer(per_second=1_000))


@pytest.fixture
async def backend() -> AsyncIterator[EchoBackend]:
    server = EchoBackend()
    await server.start()
    yield server
    await server.server.stop(None)


@dataclass
class Door:
    """A gRPC door and a client's channel to it."""

    channel: Any
    forwarder: Forwarder
    address: str


@pytest.fixture
async def door(backend: EchoBackend, router: Router, patience_seconds: float) -> AsyncIterator[Door]:
    backends = Backends(dict.fromkeys(catalog.BACKENDS, f"127.0.0.1:{backend.port}"), patience_seconds)
    forwarder = Forwarder(backends)
    server = GrpcDoor("127.0.0.1:0", [forwarder, ScoringHandler(router)])
    await server.start()
    address = f"127.0.0.1:{server.port}"
    async with grpc.aio.insecure_channel(address) as channel:
        yield Door(channel, forwarder, address)
    forwarder.stop()
    await server.stop()
    await backends.close()


@pytest.fixture
async def web(
    backend: EchoBackend, router: Router, patience_seconds: float
) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of an HTTP door whose every service is the small backend."""
    addresses = dict.fromkeys(catalog.BACKENDS, f"127.0.0.1:{backend.port}")
    backends = Backends(addresses, patience_seconds)
    secrets = grpc.aio.insecure_channel(f"127.0.0.1:{backend.port}")
    login = LoginDoor(secrets, Seal("a secret"), "", "")
    server = HttpServer("127.0.0.1:0", HttpDoor(backends, ConnectDoor(backends), router, login), router)
    server.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:
        yield session
    await server.stop()
    await secrets.close()
    await backends.close()
