"""A deployment that sleeps without requests, behind an endpoint that takes its own keys only."""

import functools
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

import stellwerk
from stellwerk_protos.inference.v1 import endpoints_pb2
from tests.system.support import Cli

pytestmark = pytest.mark.slow
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


def has_ready(count: int, deployment: endpoints_pb2.Deployment) -> bool:
    return deployment.ready_replica_count == count


def ask(url: str, number: int, key: str) -> httpx.Response:
    """Waits for the start of a replica if it must: the deployment may fall asleep before any request."""
    return httpx.post(url, json={"x": number}, headers={"authorization": f"Bearer {key}"}, timeout=60)


def until_known(url: str, key: str) -> None:
    """Returns when a new key opens the endpoint: the gateway learns of it a moment after it was made."""
    deadline = time.monotonic() + 60
    while (answer := ask(url, 1, key)).status_code != 200:
        assert (answer.status_code, time.monotonic() < deadline) == (401, True), answer.text


def until(workspace: stellwerk.Workspace, reached: Callable[[endpoints_pb2.Deployment], bool]) -> None:
    """Returns when the deployment is so."""
    deadline = time.monotonic() + 120
    while not reached(workspace.deployments.get("sleepy", "blue")):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_the_first_request_is_answered_by_a_replica_that_it_started(
    cli: Cli, workspace: stellwerk.Workspace, owner_key: str
) -> None:
    key = cli.run("endpoint", "keys", "regenerate", "sleepy", "--key", "primary").out.strip()
    until(workspace, lambda item: item.reason.code == "ASLEEP")
    url = workspace.endpoints.get("sleepy").url
    answer = ask(url, 21, key)
    assert (answer.status_code, answer.json()) == (200, {"answer": 42})
    why = cli.run("why", "endpoints/sleepy/deployments/blue").out
    assert "REQUEST_WAITS" in why or "NO_REQUESTS" in why, why

    refused = ask(url, 1, owner_key)
    assert (refused.status_code, refused.json()["reason"]) == (401, "TOKEN_NOT_ACCEPTED")
    hint = cli.run("endpoint", "keys", "show-hint", "sleepy").out
    assert key[-4:] in hint
    assert key not in hint
    cli.run("endpoint", "keys", "regenerate", "sleepy", "--key", "secondary")
    assert ask(url, 1, key).status_code == 200
    new = cli.run("endpoint", "keys", "regenerate", "sleepy", "--key", "primary", "--yes").out.strip()
    until_known(url, new)
    assert ask(url, 1, key).status_code == 401
    assert "key_regenerated" in cli.run("activity", "list").out


def test_no_request_is_lost_when_replicas_come_and_go(cli: Cli, workspace: stellwerk.Workspace) -> None:
    key = cli.run("endpoint", "keys", "regenerate", "sleepy", "--key", "primary", "--yes").out.strip()
    url = workspace.endpoints.get("sleepy").url
    until_known(url, key)
    over = threading.Event()

    def call(number: int) -> list[tuple[int, int]]:
        found = []
        with httpx.Client(headers={"authorization": f"Bearer {key}"}, timeout=60) as client:
            while not over.is_set():
                answer = client.post(url, json={"x": number})
                found.append((answer.status_code, answer.json().get("answer", 0)))
        return found

    with ThreadPoolExecutor(4) as callers:
        calls = [callers.submit(call, number) for number in range(4)]
        try:
            for count in (2, 1, 2, 1):
                settings = endpoints_pb2.ScaleSettings(min_replicas=count, max_replicas=count)
                workspace.loads.set_scale("sleepy", "blue", settings)
                until(workspace, functools.partial(has_ready, count))
        finally:
            over.set()
        for number, answers in enumerate(calls):
            assert set(answers.result()) == {(200, 2 * number)}


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
