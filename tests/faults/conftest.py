"""A stack to break, and a client of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import stellwerk
from stellwerk_launcher.testing import StackProcess


@pytest.fixture(scope="module")
def breakable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackProcess]:
    """A stack that only this module's tests use; leases are short, so that a silent node shows soon."""
    folder = tmp_path_factory.mktemp("faults")
    with StackProcess(folder / "data", environment={"STELLWERK_LEASE_SECONDS": "10"}) as stack:
        yield stack


@pytest.fixture(scope="module")
def client(breakable: StackProcess) -> Iterator[stellwerk.Client]:
    status = breakable.status()
    key = Path(status["owner_key_file"]).read_text().strip()
    with stellwerk.Client(
        grpc_address=status["grpc_address"], gateway_url=status["gateway_url"], api_key=key
    ) as client:
        client.workspaces.create("faults")
        yield client


@pytest.fixture(scope="module")
def workspace(client: stellwerk.Client) -> stellwerk.Workspace:
    return client.workspace("faults")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder belongs to `make test-faults`."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.faults)
