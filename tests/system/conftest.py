"""The session's stack, its owner's key, and for each module a workspace of its own: its `WORKSPACE`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stellwerk import Client, Workspace
from tests.system.support import Cli


@pytest.fixture(scope="session")
def owner_key(stack: dict[str, Any]) -> str:
    return Path(stack["owner_key_file"]).read_text().strip()


@pytest.fixture(scope="module")
def cli(request: pytest.FixtureRequest, stack: dict[str, Any]) -> Cli:
    """The command line in the module's workspace."""
    name = request.module.WORKSPACE
    cli = Cli.of(stack, name)
    cli.ok("workspace", "create", name)
    return cli


@pytest.fixture(scope="module")
def workspace(request: pytest.FixtureRequest, cli: Cli) -> Iterator[Workspace]:
    """The module's workspace in the SDK."""
    with Client(
        grpc_address=cli.environment["STELLWERK_GRPC_ADDRESS"],
        gateway_url=cli.environment["STELLWERK_GATEWAY_URL"],
        api_key=Path(cli.environment["STELLWERK_API_KEY_FILE"]).read_text().strip(),
    ) as client:
        yield client.workspace(request.module.WORKSPACE)
