"""New secrets for a service of a stack that is up: it goes on, and the old ones are worth nothing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]
import hvac
import nats
import pytest
from botocore.exceptions import ClientError
from hvac.exceptions import InvalidRequest
from pymongo import MongoClient
from pymongo.errors import OperationFailure

from stellwerk_launcher import stack as stacks
from stellwerk_launcher.credentials import LAUNCHER, Credentials
from stellwerk_launcher.errors import LauncherError
from stellwerk_launcher.identities import public_key
from stellwerk_launcher.testing import StackProcess, logged_in
from stellwerk_launcher.vault import Operator


@pytest.fixture
def vault(stack_process: StackProcess) -> Iterator[Operator]:
    """The launcher's login at the Vault of the session's stack."""
    own = Credentials.load_or_create(stack_process.data_dir / "credentials.json")
    with logged_in(stack_process.status()["vault_url"], own.vault[LAUNCHER]) as found:
        yield found


async def test_a_service_gets_new_secrets_and_the_old_ones_end(
    stack_process: StackProcess, vault: Operator
) -> None:
    state = stack_process.status()
    old = vault.read("services/registry")
    old_secret_id = vault.new_secret_id("registry", only=False)
    pid, others = stack_process.process("registry")["pid"], stack_process.process("runs")["pid"]

    assert stacks.rotate(stack_process.data_dir, ["registry"]) == ["registry"]

    new = vault.read("services/registry")
    for name in ("mongodb_uri", "nats_seed", "s3_access_key", "s3_secret_key"):
        assert new[name] != old[name], name
    assert stack_process.process("registry")["pid"] not in (None, pid)
    assert stack_process.process("runs")["pid"] == others
    assert {process["health"] for process in stack_process.status()["processes"]} == {"SERVING"}

    with MongoClient[dict[str, Any]](new["mongodb_uri"]) as client:
        client["stellwerk_registry"]["workspaces"].find_one({})
    with MongoClient[dict[str, Any]](old["mongodb_uri"]) as client, pytest.raises(OperationFailure):
        client["stellwerk_registry"]["workspaces"].find_one({})
    connection = await nats.connect(new["nats_url"], nkeys_seed_str=new["nats_seed"])
    await connection.close()
    # A refused nats-py client leaves its connection open, so this looks at what the server knows.
    configuration = (stack_process.data_dir / "nats" / "nats.conf").read_text()
    assert public_key(new["nats_seed"]) in configuration
    assert public_key(old["nats_seed"]) not in configuration
    client = hvac.Client(state["vault_url"])
    with pytest.raises(InvalidRequest):
        client.auth.approle.login("registry", old_secret_id)
    client.adapter.close()
    assert _lists(new)
    assert vault.read(f"blob-accounts/{old['s3_access_key']}") == {}


def _lists(kept: dict[str, str]) -> bool:
    client = boto3.client(
        "s3",
        endpoint_url=kept["s3_url"],
        aws_access_key_id=kept["s3_access_key"],
        aws_secret_access_key=kept["s3_secret_key"],
        region_name="us-east-1",
    )
    try:
        client.list_objects_v2(Bucket="stellwerk")
    except ClientError:
        return False
    finally:
        client.close()
    return True


def test_a_wrong_name_and_a_stack_that_is_down_are_told(tmp_path: Path) -> None:
    for names, reason in ((["nobody"], "SERVICE_UNKNOWN"), ([], "STACK_DOWN")):
        with pytest.raises(LauncherError) as caught:
            stacks.rotate(tmp_path, names)
        assert caught.value.reason == reason
