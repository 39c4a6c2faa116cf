"""One service for the session, in a namespace of its own."""

import uuid
from collections.abc import AsyncIterator

import pytest

from services.secrets.tests.support import Secrets
from services.telemetry.tests.support import Telemetry, run
from stellwerk_launcher.testing import Servers
from stellwerk_platform.bus import Bus, ensure_streams


@pytest.fixture(scope="session")
async def telemetry_bus(servers: Servers) -> AsyncIterator[Bus]:
    async with Bus.connect(servers.nats_url, f"t{uuid.uuid4().hex[:12]}", "test") as bus:
        await ensure_streams(bus)
        yield bus
        for stream in ("JOURNAL", "DEADLETTER", "REDELIVERY", "ACTIVITY"):
            await bus.jetstream.delete_stream(bus.names.stream(stream))


@pytest.fixture(scope="session")
async def telemetry(servers: Servers, telemetry_bus: Bus) -> AsyncIterator[Telemetry]:
    secrets = Secrets(servers, namespace=telemetry_bus.names.namespace)
    async with secrets.run():
        async with run(secrets, telemetry_bus) as telemetry:
            yield telemetry
        async with secrets.database() as database:
            for service in ("secrets", "telemetry"):
                await database.client.drop_database(f"{secrets.namespace}_{service}")
