"""One registry for the session."""

from collections.abc import AsyncIterator

import pytest_asyncio

from services.registry.tests.support import Registry, running
from stellwerk_launcher.testing import Servers
from stellwerk_protos.registry.v1 import workspaces_pb2


@pytest_asyncio.fixture(scope="session")
async def registry(servers: Servers) -> AsyncIterator[Registry]:
    """The service, with the workspace `demo`."""
    async with running(servers) as registry:
        await registry.workspaces.CreateWorkspace(workspaces_pb2.CreateWorkspaceRequest(workspace_id="demo"))
        yield registry
