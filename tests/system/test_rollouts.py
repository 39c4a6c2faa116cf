"""Updates of a live deployment: no request is lost, one command undoes them, and failures are explained."""

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.system.support import Cli

WORKSPACE = "rollouts"
SCRIPT = """
import json, os

def init():
    print("init of VERSION", flush=True)

def run(raw):
    return {"version": "VERSION", "answer": json.loads(raw)["x"] * 2}
"""
BROKEN = """
import json

def init():
    print("it loads", flush=True)

def run(raw):
    return json.loads(raw)["there is no such field"]
"""


@pytest.fixture(scope="module")
def cli(stack: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Cli:
    cli = Cli.of(stack, WORKSPACE)
    cli.ok("workspace", "create", WORKSPACE)
    model = tmp_path_factory.mktemp("model") / "model.txt"
    for number in (1, 2):
        model.write_text(str(number))
        cli.ok("model", "register", "twice", "--path", model)
    cli.ok("environment", "create", "bare")
    cli.ok("endpoint", "create", "live")
    code = folder(tmp_path_factory.mktemp("first"), SCRIPT.replace("VERSION", "one"))
    cli.ok(
        *("deployment", "create", "blue", "--endpoint", "live", "--model", "twice:1"),
        *("--environment", "bare", "--code", code, "--replicas", "2"),
    )
    return cli


def folder(path: Path, script: str) -> Path:
    """Code with a sample request."""
    (path / "score.py").write_text(script)
    (path / "sample-request.json").write_text('{"x": 1}')
    return path


class Load:
    """Callers that go on asking, and what they were answered."""

    def __init__(self, url: str, key: str) -> None:
        self.versions: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._client = httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=60)
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(4)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        self._client.close()

    def _ask(self, x: int) -> None:
        while not self._stopped.is_set():
            x += 4
            try:
                answer = self._client.post("/score", json={"x": x})
                if answer.status_code != 200 or answer.json()["answer"] != 2 * x:
                    self.wrong.append(f"{answer.status_code} {answer.text}")
                else:
                    self.versions[answer.json()["version"]] += 1
            except httpx.HTTPError as error:
                self.wrong.append(repr(error))


@pytest.fixture
def load(stack: dict[str, Any], cli: Cli, owner_key: str) -> Load:
    path = cli.json("endpoint", "show", "live")["path"]
    return Load(stack["gateway_url"] + path, owner_key)


def test_updates_and_going_back_lose_no_request(cli: Cli, load: Load, tmp_path: Path) -> None:
    code = folder(tmp_path, SCRIPT.replace("VERSION", "two"))
    with load:
        cli.ok("deployment", "update", "blue", "--endpoint", "live", "--code", code, "--model", "twice:2")
        changed = cli.json("deployment", "show", "blue", "--endpoint", "live")
        cli.ok("deployment", "rollback", "blue", "--endpoint", "live")
        cli.ok("deployment", "update", "blue", "--endpoint", "live", "--replicas", "1")
    assert load.wrong == []
    assert min(load.versions["one"], load.versions["two"]) > 0
    assert (changed["rollout"], changed["readyReplicaCount"]) == (2, 2)
    assert "sample-request.json" in changed["reason"]["message"]
    shown = cli.json("deployment", "show", "blue", "--endpoint", "live")
    assert (shown["rollout"], shown["replicaCount"]) == (3, 1)
    assert [rollout["state"].rpartition("_")[2] for rollout in shown["rollouts"]] == ["SUCCEEDED"] * 3
    assert shown["workload"]["inputs"][0]["resource"].endswith("/models/twice/versions/1")


def test_a_failed_rollout_is_explained_and_touches_nothing(cli: Cli, load: Load, tmp_path: Path) -> None:
    before = cli.json("deployment", "show", "blue", "--endpoint", "live")
    with load:
        failed = cli.run(
            *("deployment", "update", "blue", "--endpoint", "live"),
            *("--code", folder(tmp_path, BROKEN)),
        )
    assert failed.code == 1
    assert "KeyError: 'there is no such field'" in failed.err
    assert load.wrong == []
    after = cli.json("deployment", "show", "blue", "--endpoint", "live")
    assert (after["rollout"], after["workload"]) == (before["rollout"], before["workload"])
    assert cli.json("endpoint", "show", "live")["traffic"] == {"blue": 100}
    rollout = after["rollouts"][-1]
    assert rollout["reason"]["code"] == "SAMPLE_FAILED"
    assert "SCRIPT_ERROR" in rollout["reason"]["message"]
    replicas = cli.json("deployment", "replicas", "blue", "--endpoint", "live")
    broken = replicas[0]["name"].rpartition("/")[2]
    said = cli.ok("deployment", "logs", "live", "blue", "--replica", broken, "--follow")
    assert "it loads" in said
    assert "Traceback" in said
    assert "KeyError" in cli.ok("deployment", "logs", "live", "blue", "--replica", broken, "--tail", "5")
    assert "SAMPLE_FAILED" in cli.ok("why", "endpoints/live/deployments/blue")


def test_a_model_version_in_use_cannot_be_deleted(cli: Cli) -> None:
    refused = cli.run("model", "delete", "twice:1", "--yes")
    refused.check_clear("MODEL_IN_USE", refused.code, "live/blue")
    assert cli.run("model", "delete", "twice:2", "--yes").reason == "MODEL_IN_USE"
    cli.ok("deployment", "update", "blue", "--endpoint", "live", "--keep", "1")
    cli.ok("model", "delete", "twice:2", "--yes")
    assert cli.run("model", "show", "twice:2").reason == "MODEL_VERSION_NOT_FOUND"


SLOW = """
import json, time

def init():
    pass

def run(raw):
    seconds = json.loads(raw)["seconds"]
    print(f"works for {seconds} s", flush=True)
    time.sleep(seconds)
    return {"worked": seconds}
"""


def test_a_deployment_that_is_deleted_answers_what_it_was_asked(
    cli: Cli, stack: dict[str, Any], owner_key: str, tmp_path: Path
) -> None:
    (tmp_path / "score.py").write_text(SLOW)
    cli.ok("endpoint", "create", "slow")
    created = cli.json(
        *("deployment", "create", "only", "--endpoint", "slow", "--model", "twice:1"),
        *("--environment", "bare", "--code", tmp_path),
    )
    assert "No sample request was scored" in created["reason"]["message"]
    cli.ok("endpoint", "traffic", "slow", "--none")
    answers: list[httpx.Response] = []
    url = f"{stack['gateway_url']}/endpoints/{WORKSPACE}/slow/score"
    headers = {"authorization": f"Bearer {owner_key}", "azureml-model-deployment": "only"}

    def ask() -> None:
        answers.append(httpx.post(url, json={"seconds": 8}, headers=headers, timeout=60))

    asking = threading.Thread(target=ask)
    asking.start()
    follower = cli.start("deployment", "logs", "slow", "only", "--follow")
    assert follower.stdout is not None
    assert any("works for 8 s" in line for line in follower.stdout)
    deleting = cli.json("deployment", "delete", "only", "--endpoint", "slow")
    assert deleting["state"] == "PROVISIONING_STATE_DELETING"
    asking.join()
    assert [(answer.status_code, answer.json()) for answer in answers] == [(200, {"worked": 8})]
    follower.communicate()
    assert follower.returncode == 0
