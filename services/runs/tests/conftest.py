"""One set of services for the session; each test has workspaces and runs of its own."""

from collections.abc import AsyncIterator

import pytest_asyncio

from services.runs.tests.support import Client, Platform, running
from stellwerk_launcher.testing import Servers


@pytest_asyncio.fixture(scope="session")
async def platform(servers: Servers) -> AsyncIterator[Platform]:
    """The services."""
    async with running(servers) as platform:
        yield platform


@pytest_asyncio.fixture(scope="session")
async def client(platform: Platform) -> Client:
    """The owner's stubs."""
    return platform.client
