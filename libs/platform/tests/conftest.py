"""A database and a bus of its own for each test, on the session's real servers."""

import uuid
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from stellwerk_launcher.testing import Servers
from stellwerk_platform.bus import Bus, ensure_streams
from stellwerk_platform.mongo import Database


@pytest.fixture
def namespace() -> str:
    """A fresh prefix for databases, subjects and streams."""
    return f"t{uuid.uuid4().hex[:10]}"


@pytest_asyncio.fixture
async def database(servers: Servers, namespace: str) -> AsyncIterator[Database]:
    """An empty database, dropped at the end."""
    database = Database(servers.mongodb_uri, namespace, "registry")
    await database.open()
    yield database
    await database.client.drop_database(database.raw.name)
    database.close()


@pytest_asyncio.fixture
async def bus(servers: Servers, namespace: str) -> AsyncIterator[Bus]:
    """A bus with its own streams, deleted at the end."""
    async with Bus.connect(servers.nats_url, namespace, "test") as bus:
        await ensure_streams(bus)
        yield bus
        for stream in ("JOURNAL", "DEADLETTER", "REDELIVERY", "ACTIVITY"):
            await bus.jetstream.delete_stream(bus.names.stream(stream))
