"""After the main job, no secret that was used is in any store, log or event: only in Vault.

The files that hold secrets because that is what they are for are left out, and named here.
"""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hvac
import psutil
import pymongo
import pytest

from stellwerk_launcher.testing import StackProcess
from tests.system.support import Cli, contents

WORKSPACE = "leakless"
SCRIPT = """
import stellwerk

run = stellwerk.current_run()
print("secret:", run.secret("api-token"))
run.log("accuracy", 1.0)
raise SystemExit("failed with " + run.secret("api-token"))
"""
# Vault itself; what the person who starts the stack needs; tokens of what runs at this moment.
_KEEPERS = ("openbao", "credentials.json", "owner.key")
_TOKEN = "token"
# Where the inspector's passwords stand, the user with which that person looks into the servers by hand.
_OF_THE_INSPECTOR = ("stack.json", "nats/nats.conf")
# Shorter ones are no secrets but names and switches.
_SHORTEST = 16


@pytest.fixture(scope="module")
def named(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What people and runs use: a secret, a key, an invitation, credentials of a subscriber, a login."""
    folder = tmp_path_factory.mktemp("leaks")
    value = f"needle-{uuid.uuid4().hex}"
    (folder / "value").write_text(value)
    cli.ok("secret", "set", "api-token", "--file", folder / "value")
    (folder / "script.py").write_text(SCRIPT)
    (folder / "value").unlink()
    cli.run("run", "submit", folder, "--command", "python script.py", "--secret", "api-token")
    person = cli.json("user", "create", f"p{uuid.uuid4().hex[:8]}")
    key = cli.json("key", "create", "--display-name", "for the test")
    credentials = cli.json("events", "credentials", "create")
    assert cli.ok("secret", "get", "api-token") == value
    wrong = f"swk_{uuid.uuid4().hex}{uuid.uuid4().hex}"
    assert cli.with_(STELLWERK_API_KEY=wrong, STELLWERK_API_KEY_FILE="").run("workspace", "list").code == 4
    return {
        "the value of a named secret": value,
        "an invitation": person["invitation"],
        "an API key": key["key"],
        "a subscriber's password": credentials["password"],
        "a wrong key": wrong,
    }


@pytest.fixture(scope="module")
def main_job(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Data, training, model: with uploads and downloads by presigned address."""
    folder = tmp_path_factory.mktemp("digits")
    (folder / "data.csv").write_text("a,b\n1,2\n")
    cli.ok("dataset", "create", "numbers", folder / "data.csv")
    (folder / "job").mkdir()
    (folder / "job/train.py").write_text(
        "import pathlib; pathlib.Path('outputs').mkdir(); pathlib.Path('outputs/m.bin').write_text('model')"
    )
    submitted = cli.ok("run", "submit", folder / "job", "--input", "data=numbers:1", "--name", "leak-train")
    assert submitted
    cli.ok("model", "register", "m", "--run", "leak-train", "--path", "outputs/m.bin")


def platform_secrets(stack: dict[str, Any]) -> dict[str, str]:
    """What the stack's own parts use, by where it was found."""
    folder = Path(stack["data_dir"])
    credentials = json.loads((folder / "credentials.json").read_text())
    found = {f"credentials.json {key}": value for key, value in _leaves(credentials)}
    found["owner.key"] = (folder / "owner.key").read_text().strip()
    vault = hvac.Client(url=stack["vault_url"])
    vault.auth.approle.login(role_id="launcher", secret_id=credentials["vault"]["launcher"])
    for path in ("launcher", *(f"services/{name}" for name in _services(stack))):
        document = vault.secrets.kv.v2.read_secret_version(
            path=f"stellwerk/{path}", mount_point="secret", raise_on_deleted_version=True
        )
        found |= {f"Vault {path} {key}": value for key, value in document["data"]["data"].items()}
    for item in stack["processes"]:
        environment = psutil.Process(item["pid"]).environ()
        for key, value in environment.items():
            if key.startswith("STELLWERK_") and key.endswith(("SECRET_ID", "SECRET_KEY", "OTLP_KEY", "SEED")):
                found[f"{item['name']} {key}"] = value
    return found


def _services(stack: dict[str, Any]) -> list[str]:
    servers = {"nats", "mongod", "openbao", "versitygw", "agent"}
    return [item["name"] for item in stack["processes"] if item["name"] not in servers]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{path} {key}".strip())
    elif isinstance(value, str):
        yield path, value


def _needles(secrets: dict[str, str]) -> dict[str, bytes]:
    """A URI is no secret by itself; the password in it is."""
    needles = {}
    for name, value in secrets.items():
        password = value.split("://", 1)[-1].rpartition("@")[0].partition(":")[2] if "://" in value else value
        if len(password) >= _SHORTEST:
            needles[name] = password.encode()
    return needles


@pytest.mark.usefixtures("main_job")
def test_no_secret_is_in_a_store_a_log_or_an_event(
    stack_process: StackProcess, named: dict[str, str]
) -> None:
    # As it is now: other tests may have had its processes start anew.
    stack = stack_process.status()
    needles = _needles(platform_secrets(stack) | named)
    assert len(needles) > 20, "the secrets of the stack were not found"
    leaks = [
        f"{what} in {path}"
        for path, data in _contents(stack)
        for what, needle in needles.items()
        if needle in data and not (path in _OF_THE_INSPECTOR and what.endswith("inspector"))
    ]
    assert not leaks, "\n".join(sorted(leaks)[:50])


def _contents(stack: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Every file of the stack, MongoDB's documents as they are (its files are compressed)."""
    folder = Path(stack["data_dir"])
    for path, content in contents(folder):
        relative = path.relative_to(folder)
        if relative.parts[0] not in _KEEPERS and path.name != _TOKEN:
            yield str(relative), content
    with pymongo.MongoClient[dict[str, Any]](stack["mongodb_uri"]) as client:
        for name in client.list_database_names():
            if name in ("admin", "config", "local"):
                continue
            for collection in client[name].list_collection_names():
                for document in client[name][collection].find():
                    yield f"{name}.{collection}", repr(document).encode()
