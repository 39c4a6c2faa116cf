"""One set of services for the session; each test has workspaces and runs of its own."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from services.runs.tests.support import Client, Platform, running
from stellwerk_launcher.testing import Servers
from stellwerk_platform import grpc_client
from stellwerk_runs.ingest import streams


@pytest_asyncio.fixture(scope="session")
async def platform(servers: Servers) -> AsyncIterator[Platform]:
    """The services; whoever reads what an ended run said waits for all of it, however busy the machine is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "_SETTLE_SECONDS", 100.0)
        patch.setattr(grpc_client, "_DEADLINE_SECONDS", 120.0)
        async with running(servers) as platform:
            yield platform


@pytest_asyncio.fixture(scope="session")
async def client(platform: Platform) -> Client:
    """The owner's stubs."""
    return platform.client
