"""A gateway in this process, before one small backend that stands for all services."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
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
async def door(backend: EchoBackend) -> AsyncIterator[Door]:
    backends = Backends(dict.fromkeys(catalog.BACKENDS, f"127.0.0.1:{backend.port}"), patience_seconds=1)
    forwarder = Forwarder(backends)
    server = GrpcDoor("127.0.0.1:0", [forwarder])
    await server.start()
    address = f"127.0.0.1:{server.port}"
    async with grpc.aio.insecure_channel(address) as channel:
        yield Door(channel, forwarder, address)
    forwarder.stop()
    await server.stop()
    await backends.close()


@pytest.fixture
async def web(backend: EchoBackend) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of an HTTP door whose every service is the small backend."""
    addresses = dict.fromkeys(catalog.BACKENDS, f"127.0.0.1:{backend.port}")
    backends = Backends(addresses, patience_seconds=1)
    server = HttpServer("127.0.0.1:0", HttpDoor(backends, ConnectDoor(backends)))
    server.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:
        yield session
    await server.stop()
    await backends.close()
