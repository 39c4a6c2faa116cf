"""A deployment that sleeps without requests, behind an endpoint that takes its own keys only."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import stellwerk
from stellwerk_protos.inference.v1 import endpoints_pb2
from tests.system.support import Cli

WORKSPACE = "scaling"
SCRIPT = """
import json

def init():
    pass

def run(raw):
    return {"answer": json.loads(raw)["x"] * 2}
"""
SLEEPY = endpoints_pb2.ScaleSettings(min_replicas=0, max_replicas=2, scale_down_delay_seconds=2)


@pytest.fixture(scope="module")
def cli(stack: dict[str, Any]) -> Cli:
    return Cli.of(stack, WORKSPACE)


@pytest.fixture(scope="module")
def workspace(
    stack: dict[str, Any], owner_key: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[stellwerk.Workspace]:
    folder = tmp_path_factory.mktemp("scaling")
    (folder / "code").mkdir()
    (folder / "code" / "score.py").write_text(SCRIPT)
    (folder / "model.txt").write_text("none")
    with stellwerk.Client(
        grpc_address=stack["grpc_address"], gateway_url=stack["gateway_url"], api_key=owner_key
    ) as client:
        client.workspaces.create(WORKSPACE)
        workspace = client.workspace(WORKSPACE)
        workspace.environments.create_version("bare", packages=[])
        workspace.models.register("none", path=folder / "model.txt")
        workspace.endpoints.create("sleepy", auth="key")
        workspace.deployments.create(
            *("blue",),
            endpoint="sleepy",
            models=["none:1"],
            environment="bare",
            code=folder / "code",
            script="score.py",
            scale=SLEEPY,
        )
        last = list(workspace.deployments.watch("sleepy", "blue"))[-1]
        assert last.ready_replica_count == 1, last.reason
        yield workspace
        workspace.endpoints.delete("sleepy")


def until_asleep(workspace: stellwerk.Workspace) -> None:
    """Returns when no replica runs any more, as `inference` tells."""
    deadline = time.monotonic() + 60
    while workspace.deployments.get("sleepy", "blue").reason.code != "ASLEEP":
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.timeout(180)
def test_the_first_request_is_answered_by_a_replica_that_it_started(
    cli: Cli, workspace: stellwerk.Workspace, owner_key: str
) -> None:
    key = cli.run("endpoint", "keys", "regenerate", "sleepy", "--key", "primary").out.strip()
    until_asleep(workspace)
    url = workspace.endpoints.get("sleepy").url
    began = time.monotonic()
    answer = httpx.post(url, json={"x": 21}, headers={"authorization": f"Bearer {key}"}, timeout=60)
    print(f"scale from zero: {time.monotonic() - began:.2f} s")
    assert (answer.status_code, answer.json()) == (200, {"answer": 42})
    why = cli.run("why", "endpoints/sleepy/deployments/blue").out
    assert "REQUEST_WAITS" in why or "NO_REQUESTS" in why, why

    refused = httpx.post(url, json={"x": 1}, headers={"authorization": f"Bearer {owner_key}"})
    assert (refused.status_code, refused.json()["reason"]) == (401, "TOKEN_NOT_ACCEPTED")
    hint = cli.run("endpoint", "keys", "show-hint", "sleepy").out
    assert key[-4:] in hint
    assert key not in hint
    cli.run("endpoint", "keys", "regenerate", "sleepy", "--key", "secondary")
    assert httpx.post(url, json={"x": 1}, headers={"authorization": f"Bearer {key}"}).status_code == 200
    new = cli.run("endpoint", "keys", "regenerate", "sleepy", "--key", "primary", "--yes").out.strip()
    assert httpx.post(url, json={"x": 1}, headers={"authorization": f"Bearer {new}"}).status_code == 200
    assert httpx.post(url, json={"x": 1}, headers={"authorization": f"Bearer {key}"}).status_code == 401
    assert "key_regenerated" in cli.run("activity", "list").out


def test_the_load_is_shown_and_played_again(cli: Cli, workspace: stellwerk.Workspace, tmp_path: Path) -> None:
    assert "sleepy/blue" in cli.run("endpoint", "top", "sleepy", "--once").out
    file = tmp_path / "load.json"
    file.write_text(json.dumps([0] * 30 + [20] * 30))
    shown = cli.run(
        *("endpoint", "simulate", "sleepy", "--deployment", "blue", "--min", "0", "--max", "4"),
        *("--load", file, "--service-ms", "100", "-o", "json"),
    ).out
    assert json.loads(shown)["requests"] == "600"
    wrong = cli.run("endpoint", "simulate", "sleepy", "--deployment", "blue", "--max", "4", "--load", "none")
    wrong.check_clear("PATH_NOT_FOUND", 3)
