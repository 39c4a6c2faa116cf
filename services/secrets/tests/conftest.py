"""The service in this process, on real servers, in a namespace of its own."""

from collections.abc import AsyncIterator

import pytest

from services.secrets.tests.support import Secrets
from stellwerk_launcher.testing import Servers


@pytest.fixture(scope="session")
async def secrets(servers: Servers) -> AsyncIterator[Secrets]:
    """One for the session; tests that change its keys take `fresh`."""
    service = Secrets(servers)
    async with service.run():
        yield service
    async with service.database() as database:
        await database.client.drop_database(database.raw.name)


@pytest.fixture
async def fresh(servers: Servers) -> AsyncIterator[Secrets]:
    """One that does not run yet."""
    service = Secrets(servers)
    yield service
    async with service.database() as database:
        await database.client.drop_database(database.raw.name)
