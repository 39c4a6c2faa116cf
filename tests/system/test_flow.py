"""The main job through the command line, and what can be seen of it everywhere else."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import httpx
import motor.motor_asyncio
import nats
import pytest

from stellwerk_launcher.credentials import SERVICES
from stellwerk_launcher.identities import password_in
from stellwerk_launcher.testing import logged_in
from stellwerk_protos.open_inference import grpc_predict_v2_pb2 as oip
from stellwerk_protos.open_inference import grpc_predict_v2_pb2_grpc as oip_grpc
from tests.system.support import EXAMPLE, Cli

pytestmark = pytest.mark.timeout(400)
WORKSPACE = "flow"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits as files, with images that the training does not see."""
    folder = tmp_path_factory.mktemp("digits")
    subprocess.run([sys.executable, EXAMPLE / "prepare.py"], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def dataset(cli: Cli, files: Path) -> dict[str, Any]:
    """The digits, registered by reference."""
    created: dict[str, Any] = cli.json("dataset", "create", "digits", files / "digits.csv")
    return created


@pytest.fixture(scope="module")
def run(cli: Cli, dataset: dict[str, Any]) -> dict[str, Any]:
    """The training, followed in one terminal and watched in another."""
    follower = cli.start("run", "submit", "-f", EXAMPLE / "job.yml", "--name", "train-1")
    while not cli.json("run", "list"):
        assert follower.poll() is None, follower.communicate()
    watcher = cli.start("run", "watch", "train-1")
    out, err = follower.communicate()
    assert follower.returncode == 0, (out, err)
    seen, _ = watcher.communicate()
    assert watcher.returncode == 0
    shown: dict[str, Any] = cli.json("run", "show", "train-1")
    return {**shown, "followed": out + err, "watched": seen}


@pytest.fixture(scope="module")
def endpoint(cli: Cli, run: dict[str, Any]) -> dict[str, Any]:
    """The model, registered and deployed."""
    cli.ok("model", "register", "digits", "--run", "train-1", "--path", "outputs/model.joblib")
    cli.ok("endpoint", "create", "digits")
    cli.ok(
        *("deployment", "create", "blue", "--endpoint", "digits", "--model", "digits:1"),
        *("--environment", "digits", "--code", EXAMPLE, "--script", "score.py"),
    )
    shown: dict[str, Any] = cli.json("endpoint", "show", "digits")
    return shown


def test_a_dataset_is_a_reference_with_a_digest(dataset: dict[str, Any]) -> None:
    assert dataset["name"] == f"workspaces/{WORKSPACE}/datasets/digits/versions/1"
    assert dataset["digest"].startswith("sha256:")
    assert [file["path"] for file in dataset["files"]] == ["digits.csv"]


def test_the_training_is_followed_live_in_both_terminals(run: dict[str, Any]) -> None:
    for text in (run["followed"], run["watched"]):
        assert "Completed" in text
        assert "accuracy" in text
        assert "epoch" in text


def test_a_run_remembers_what_it_was(run: dict[str, Any]) -> None:
    assert run["state"] == "RUN_STATE_COMPLETED"
    assert run["exitCode"] == 0
    assert len(run["traceId"]) == 32
    assert len(run["git"]["commit"]) == 40
    assert [phase["name"] for phase in run["phases"]] == [
        "prepare_environment",
        "fetch_snapshot",
        "fetch_inputs",
        "run_command",
        "collect_outputs",
    ]
    assert all(phase["endTime"] >= phase["startTime"] for phase in run["phases"])
    assert run["workload"]["inputs"] == [
        {"name": "digits", "resource": f"workspaces/{WORKSPACE}/datasets/digits/versions/1"}
    ]


def test_metrics_are_exact_and_summarised(cli: Cli, run: dict[str, Any]) -> None:
    metrics = {metric["metric"]: metric for metric in cli.json("run", "metrics", "train-1")}
    assert float(metrics["accuracy"]["last"]) > 0.95
    assert int(metrics["loss"]["count"]) >= 5
    assert metrics["loss"]["min"] < metrics["loss"]["max"]


async def test_metrics_lie_in_mongodb(stack: dict[str, Any], run: dict[str, Any]) -> None:
    client: Any = motor.motor_asyncio.AsyncIOMotorClient(stack["mongodb_uri"])
    database = client["stellwerk_runs"]
    assert await database["runs"].find_one({"_id": run["name"]})
    collections = await database.list_collection_names()
    counts = {name: await database[name].count_documents({}) for name in collections if "metric" in name}
    assert counts
    assert all(counts.values())
    client.close()


def test_the_log_is_the_scripts_own_output(cli: Cli, run: dict[str, Any]) -> None:
    assert "epoch" in cli.ok("run", "logs", "train-1")


def test_outputs_can_be_downloaded(cli: Cli, run: dict[str, Any], tmp_path: Path) -> None:
    cli.ok("run", "download", "train-1", "--to", tmp_path)
    assert (tmp_path / "outputs" / "model.joblib").stat().st_size > 1_000
    assert len(list((tmp_path / "outputs").iterdir())) >= 2


def test_models_are_numbered_and_trace_to_their_run(cli: Cli, run: dict[str, Any]) -> None:
    first = cli.json("model", "register", "other", "--run", "train-1", "--path", "outputs/model.joblib")
    second = cli.json("model", "register", "other", "--run", "train-1", "--path", "outputs/model.joblib")
    assert (int(first["version"]), int(second["version"])) == (1, 2)
    assert first["run"] == run["name"]
    assert first["digest"] == second["digest"]


@pytest.fixture(scope="module")
def holdout(files: Path) -> tuple[list[list[float]], list[int]]:
    """Images and their digits."""
    data = json.loads((files / "holdout.json").read_text())
    return data["request"]["data"], data["digits"]


def test_images_are_scored_over_http(
    stack: dict[str, Any], owner_key: str, endpoint: dict[str, Any], holdout: Any
) -> None:
    images, labels = holdout
    url = stack["gateway_url"] + endpoint["path"]
    headers = {"authorization": f"Bearer {owner_key}"}
    answer = (
        httpx.post(f"{url}/score", json={"data": images}, headers=headers, timeout=60)
        .raise_for_status()
        .json()
    )
    assert sum(a == b for a, b in zip(answer, labels, strict=True)) > 0.9 * len(labels)
    flat = [value for image in images for value in image]
    tensor = {"name": "data", "shape": [len(images), 64], "datatype": "FP64", "data": flat}
    infer = httpx.post(
        f"{url}/v2/models/digits/infer", json={"id": "x1", "inputs": [tensor]}, headers=headers, timeout=60
    )
    assert infer.raise_for_status().json()["outputs"][0]["data"] == answer
    assert infer.json()["id"] == "x1"
    assert httpx.get(f"{url}/v2/health/ready", headers=headers, timeout=60).status_code == 200


async def test_images_are_scored_over_grpc(
    stack: dict[str, Any], owner_key: str, endpoint: dict[str, Any], holdout: Any
) -> None:
    images, labels = holdout
    async with grpc.aio.insecure_channel(stack["grpc_address"]) as channel:
        request = oip.ModelInferRequest(model_name="digits", id="7")
        tensor = request.inputs.add(name="data", datatype="FP64", shape=[len(images), 64])
        tensor.contents.fp64_contents.extend(value for image in images for value in image)
        metadata = (
            ("authorization", f"Bearer {owner_key}"),
            ("stellwerk-endpoint", f"{WORKSPACE}/digits"),
        )
        answer = await oip_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, metadata=metadata)
    output = list(answer.outputs[0].contents.int64_contents)
    assert sum(a == b for a, b in zip(output, labels, strict=True)) > 0.9 * len(labels)
    assert answer.id == "7"


def test_an_error_of_the_scoring_script_is_found_where_its_cure_says(
    cli: Cli, stack: dict[str, Any], owner_key: str, endpoint: dict[str, Any]
) -> None:
    url = stack["gateway_url"] + endpoint["path"]
    headers = {"authorization": f"Bearer {owner_key}"}
    answer = httpx.post(f"{url}/score", json={"wrong": 1}, headers=headers, timeout=60)
    assert (answer.status_code, answer.json()["reason"]) == (500, "SCRIPT_ERROR")
    assert "`stellwerk deployment logs" in answer.json()["cure"]
    follower = cli.start("deployment", "logs", "digits", "blue", "--follow")
    assert follower.stdout is not None
    # Ends with the test's time limit if the traceback never comes.
    assert any("score.py" in line for line in follower.stdout)
    follower.kill()
    follower.communicate()


def test_an_endpoint_does_not_go_unasked_with_its_deployments(cli: Cli, endpoint: dict[str, Any]) -> None:
    cli.run("endpoint", "delete", "digits").check_clear("CONFIRMATION_MISSING", 2, "blue", "--yes")
    assert cli.json("endpoint", "show", "digits")["state"] == endpoint["state"]


def test_traffic_can_be_taken_from_all(cli: Cli, endpoint: dict[str, Any]) -> None:
    assert not cli.json("endpoint", "traffic", "digits", "--none")["traffic"]
    assert cli.json("endpoint", "traffic", "digits", "blue=100")["traffic"] == {"blue": 100}


def test_copies_and_sticky_requests_are_set_beside_the_traffic(cli: Cli, endpoint: dict[str, Any]) -> None:
    changed = cli.json(
        *("endpoint", "traffic", "digits", "blue=100", "--mirror", "blue=10", "--sticky-header", "X-User")
    )
    assert (changed["mirrorTraffic"], changed["stickyHeader"]) == ({"blue": 10}, "x-user")
    changed = cli.json("endpoint", "traffic", "digits", "--no-mirror", "--sticky-header", "")
    assert changed["traffic"] == {"blue": 100}
    assert not changed["mirrorTraffic"]
    assert not changed["stickyHeader"]


def test_the_newest_events_are_reachable(cli: Cli, run: dict[str, Any]) -> None:
    every = cli.json("events", "list", "--limit", "10000", "--resource", "runs/train-1")
    tail = cli.json("events", "list", "--tail", "2", "--resource", "runs/train-1")
    assert tail == every[-2:]
    assert cli.json("events", "list", "--since", "1h", "--resource", "runs/train-1") == every


def test_every_transition_is_an_event(cli: Cli, run: dict[str, Any], endpoint: dict[str, Any]) -> None:
    events = cli.json("events", "list", "--limit", "10000")
    types = {event["type"] for event in events}
    assert {
        "stellwerk.registry.workspace.created.v1",
        "stellwerk.registry.dataset_version.created.v1",
        "stellwerk.registry.environment_version.locked.v1",
        "stellwerk.registry.model_version.created.v1",
        "stellwerk.runs.experiment.created.v1",
        "stellwerk.runs.run.created.v1",
        "stellwerk.runs.run.running.v1",
        "stellwerk.runs.run.completed.v1",
        "stellwerk.compute.allocation.queued.v1",
        "stellwerk.compute.allocation.succeeded.v1",
        "stellwerk.inference.endpoint.created.v1",
        "stellwerk.inference.deployment.created.v1",
        "stellwerk.inference.replica.created.v1",
    } <= types
    mine = [event for event in events if event["subject"] == run["name"]]
    assert [event["data"]["revision"] for event in mine] == list(range(1, len(mine) + 1))
    assert mine[-1]["data"]["resource"]["state"] == "RUN_STATE_COMPLETED"
    assert mine[0]["data"]["actor"] == "users/owner"
    assert all(event["data"]["reason"]["code"] for event in events)


async def test_any_nats_client_can_read_the_journal(stack: dict[str, Any], run: dict[str, Any]) -> None:
    client = await nats.connect(stack["nats_url"])
    subscription = await client.jetstream().subscribe(
        f"stellwerk.journal.{WORKSPACE}.runs.run.created", ordered_consumer=True
    )
    message = await subscription.next_msg(timeout=60)
    assert json.loads(message.data)["subject"] == run["name"]
    await client.close()


def whole_trace(cli: Cli, run: str) -> dict[str, Any]:
    """The trace of a run once every span's parent has arrived: processes export every half second."""
    while True:
        trace: dict[str, Any] = cli.json("trace", run)
        ids = {span["spanId"] for span in trace["spans"]}
        if all(not span.get("parentSpanId") or span["parentSpanId"] in ids for span in trace["spans"]):
            return trace


def test_a_trace_goes_from_the_command_line_to_the_script(cli: Cli, run: dict[str, Any]) -> None:
    trace = whole_trace(cli, "train-1")
    assert trace["traceId"] == run["traceId"]
    services = {span["service"] for span in trace["spans"]}
    assert {"cli", "runs", "compute", "agent"} <= services, services
    assert any("run_command" in span["name"] for span in trace["spans"])


def test_no_secret_is_in_an_event(cli: Cli, owner_key: str, run: dict[str, Any]) -> None:
    text = json.dumps(cli.json("events", "list", "--limit", "10000"))
    assert owner_key not in text
    assert "eyJ" not in text


def test_no_secret_is_in_a_log(stack: dict[str, Any], owner_key: str, run: dict[str, Any]) -> None:
    """Neither keys nor tokens, nor presigned URLs, which open what they name to anybody."""
    folder = Path(stack["owner_key_file"]).parent
    credentials = json.loads((folder / "credentials.json").read_text())
    with logged_in(stack["vault_url"], credentials["vault"]["launcher"]) as vault:
        kept = [vault.read(path) for path in ("launcher", *(f"services/{name}" for name in SERVICES))]
    secrets = [owner_key, "X-Amz-Signature", "eyJhbGciOiJFZERTQSI", *_passwords([credentials, kept])]
    assert len(secrets) > 20
    for log in (folder / "logs").iterdir():
        text = log.read_text(errors="replace")
        found = [secret[:15] for secret in secrets if secret in text]
        assert not found, log.name


def _passwords(part: Any) -> list[str]:
    """All long texts in a tree."""
    if isinstance(part, dict):
        part = [password_in(value) if "://" in str(value) else value for value in part.values()]
    if isinstance(part, list):
        return [text for value in part for text in _passwords(value)]
    return [part] if isinstance(part, str) and len(part) >= 16 else []


def test_curl_can_call_the_whole_api(stack: dict[str, Any], owner_key: str, run: dict[str, Any]) -> None:
    url = f"{stack['gateway_url']}/stellwerk.runs.v1.RunService/GetRun"
    body = {"name": run["name"]}
    answer = httpx.post(url, json=body, headers={"authorization": f"Bearer {owner_key}"}, timeout=60)
    assert answer.json()["state"] == "RUN_STATE_COMPLETED"
    refused = httpx.post(url, json=body, timeout=60)
    assert refused.status_code == 401
    assert refused.json()["code"] == "unauthenticated"


def test_the_interpreter_of_the_demo_is_not_the_runs_own(run: dict[str, Any]) -> None:
    """The run has an environment of its own, made from its lock."""
    assert run["workload"]["environment"].startswith(f"workspaces/{WORKSPACE}/environments/")
    assert sys.prefix not in json.dumps(run)


def test_held_out_images_are_scored_as_a_batch_too(
    cli: Cli, endpoint: dict[str, Any], files: Path, holdout: Any, tmp_path: Path
) -> None:
    _, labels = holdout
    cli.ok("dataset", "create", "images", files / "images")
    cli.ok("endpoint", "create", "digits-batch", "--batch")
    cli.ok(
        *("deployment", "create", "blue", "--endpoint", "digits-batch", "--model", "digits:1"),
        *("--environment", "digits", "--code", EXAMPLE, "--script", "batch_score.py"),
        *("--mini-batch-size", "30"),
    )
    cli.ok("batch", "submit", "digits-batch", "images:1", "--name", "first")
    cli.ok("batch", "download", "digits-batch", "first", "--to", tmp_path)
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [f"{number:03}.pgm" for number in range(len(labels))]
    right = sum(int(row["digit"]) == label for row, label in zip(rows, labels, strict=True))
    assert right / len(labels) > 0.9
