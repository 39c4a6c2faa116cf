"""What a deployment is asked and answers becomes data."""

import json
from pathlib import Path
from textwrap import dedent
from typing import Any

import httpx
import pytest

from tests.system.support import EXAMPLE, Cli

pytestmark = pytest.mark.slow
WORKSPACE = "collected"
REQUESTS = 40
DRIFTED = 6
SCRIPT = """
    from azureml.ai.monitoring import Collector

    def init():
        global inputs
        inputs = Collector("model_inputs")

    def run(data):
        inputs.collect([{"length": len(data)}])
        return {"length": len(data)}
"""


@pytest.fixture(scope="module")
def sent(cli: Cli, stack: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Bodies by request id, sent to a deployment that is gone since."""
    folder = tmp_path_factory.mktemp("code")
    (folder / "score.py").write_text(dedent(SCRIPT))
    (folder / "model.txt").write_text("none")
    cli.ok("environment", "create", "bare")
    cli.ok("model", "register", "none", "--path", folder / "model.txt")
    cli.ok("endpoint", "create", "sizes")
    cli.ok(
        *("deployment", "create", "blue", "--endpoint", "sizes", "--model", "none:1"),
        *("--environment", "bare", "--code", folder, "--collect", "request", "--collect", "response"),
        *("--collect", "model_inputs", "--collect-header", "X-Customer"),
    )
    shown = cli.json("endpoint", "show", "sizes")
    key = Path(stack["owner_key_file"]).read_text().strip()
    bodies = {f"request-{number}": json.dumps({"data": "x" * number}) for number in range(REQUESTS)}
    with httpx.Client(base_url=stack["gateway_url"] + shown["path"], timeout=30) as client:
        for request_id, body in bodies.items():
            headers = {"authorization": f"Bearer {key}", "x-request-id": request_id, "x-customer": "acme"}
            client.post("/score", content=body, headers=headers).raise_for_status()
    # The end of a replica brings what is left of it.
    cli.ok("endpoint", "traffic", "sizes", "--none")
    cli.ok("deployment", "delete", "blue", "--endpoint", "sizes")
    watching = cli.start(
        "events", "watch", "--since", "10m", "--type", "stellwerk.inference.deployment.deleted.v1"
    )
    assert watching.stdout is not None
    watching.stdout.readline()
    watching.terminate()
    watching.communicate()
    return bodies


def events(folder: Path, collection: str) -> dict[str, dict[str, Any]]:
    files = folder.glob(f"sizes/blue/{collection}/*/*/*/*/*.jsonl")
    found = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    by_id = {event["correlationid"]: event for event in found}
    assert len(by_id) == len(found)
    return by_id


def test_every_request_and_answer_is_there_once(cli: Cli, sent: dict[str, str], tmp_path: Path) -> None:
    summary = cli.json("endpoint", "data", "export", "sizes", "--to", tmp_path)
    assert (summary["events"], summary["dropped"]) == (3 * REQUESTS, 0)
    requests, answers = events(tmp_path, "request"), events(tmp_path, "response")
    assert {name: event["data"] for name, event in requests.items()} == {
        name: json.loads(body) for name, body in sent.items()
    }
    assert all(json.loads(event["capturedheaders"]) == {"x-customer": "acme"} for event in requests.values())
    assert {name: event["data"]["length"] for name, event in answers.items()} == {
        name: len(body) for name, body in sent.items()
    }
    assert events(tmp_path, "model_inputs").keys() == sent.keys()


def test_collected_data_becomes_a_dataset(cli: Cli, sent: dict[str, str]) -> None:
    chosen = ("sizes", "--deployment", "blue", "--collection", "request", "--since", "1d")
    listed = cli.json("endpoint", "data", "list", *chosen)
    version = cli.json("endpoint", "data", "export", *chosen, "--dataset", "asked")
    assert [item["file"]["path"] for item in listed] == [file["path"] for file in version["files"]]
    assert sum(int(item["eventCount"]) for item in listed) == REQUESTS


def test_what_was_not_collected_is_an_error_with_a_cure(cli: Cli, sent: dict[str, str]) -> None:
    outcome = cli.run("endpoint", "data", "export", "sizes", "--collection", "other", "--dataset", "none")
    outcome.check_clear("NO_COLLECTED_DATA", 3, "--collect")


def baseline(cli: Cli, folder: Path, name: str, first: int) -> None:
    """A dataset of as many different lengths as the requests have, from `first` on."""
    lines = ["length", *(str(first + number % REQUESTS) for number in range(400))]
    (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    cli.ok("dataset", "create", name, folder / f"{name}.csv")


def test_a_monitor_says_whether_the_data_has_moved(cli: Cli, sent: dict[str, str], tmp_path: Path) -> None:
    watched = (
        *("--endpoint", "sizes", "--collection", "model_inputs", "--min-rows", "10", "--window", "2h"),
        *("--threshold", "length:ks=0.3"),
    )
    shortest = min(map(len, sent.values()))
    for name, first in (("alike", shortest), ("moved", shortest + REQUESTS)):
        baseline(cli, tmp_path, name, first)
        made = cli.json("monitor", "create", name, *watched, "--baseline", name)
        assert (made["state"], made["baseline"].rsplit("/", 1)[1]) == ("MONITOR_STATE_PENDING", "1")
    calm = cli.json("monitor", "check", "alike", "--fail-on-drift")
    assert (calm["found"], int(calm["rowCount"])) == ("MONITOR_STATE_OK", REQUESTS), calm
    drifted = cli.run("monitor", "check", "moved", "--fail-on-drift")
    assert drifted.code == DRIFTED, drifted
    assert "Drifted" in drifted.out
    assert "length" in drifted.out
    states = [line.split()[:2] for line in cli.ok("monitor", "list").splitlines()[1:]]
    assert states == [["alike", "Ok"], ["moved", "Drifted"]]


def test_drift_is_an_event_with_its_evidence(cli: Cli, sent: dict[str, str]) -> None:
    watching = cli.start(
        *("events", "watch", "--since", "10m", "--resource", "monitors/moved", "--limit", "1"),
        *("--type", "stellwerk.inference.monitor.drifted.v1", "--output", "json"),
    )
    out, err = watching.communicate(timeout=240)
    event = json.loads(out or err)
    assert event["data"]["reason"]["code"] == "MODEL_DRIFTED"
    assert "length" in event["data"]["reason"]["message"]
    assert "length" in cli.ok("why", "monitors/moved")
    assert "1.0" in cli.ok("monitor", "show", "moved", "--column", "length")


def test_a_monitor_rests_and_goes(cli: Cli, sent: dict[str, str]) -> None:
    tried = (
        "--endpoint",
        "sizes",
        "--baseline",
        "alike",
        "--cron",
        "30 6 * * *",
        "--time-zone",
        "Asia/Tokyo",
    )
    would = cli.json("monitor", "create", "tried", *tried, "--dry-run")
    assert [time[11:] for time in would["upcomingCheckTimes"]] == ["21:30:00Z"] * 5
    cli.run("monitor", "show", "tried").check_clear("MONITOR_NOT_FOUND", 3)
    assert "paused" in cli.ok("monitor", "pause", "alike")
    assert cli.json("monitor", "resume", "alike")["nextCheckTime"]
    cli.run("monitor", "delete", "alike").check_clear("CONFIRMATION_MISSING", 2, "checks (1)")
    cli.ok("monitor", "delete", "alike", "--yes")
    cli.run("monitor", "show", "alike").check_clear("MONITOR_NOT_FOUND", 3)


def test_keys_are_never_collected(cli: Cli, sent: dict[str, str]) -> None:
    outcome = cli.run(
        *("deployment", "create", "green", "--endpoint", "sizes", "--model", "none:1", "--no-wait"),
        *("--environment", "bare", "--code", EXAMPLE, "--script", "score.py"),
        *("--collect", "request", "--collect-header", "Authorization"),
    )
    outcome.check_clear("INVALID_DATA_COLLECTION", 2, "authorization")


def test_old_data_is_counted_before_it_goes_and_only_then_asked_for(cli: Cli, sent: dict[str, str]) -> None:
    counted = cli.json("endpoint", "data", "delete", "sizes", "--before", "2999-01-01", "--dry-run")
    assert int(counted["eventCount"]) == 3 * REQUESTS
    refused = cli.run("endpoint", "data", "delete", "sizes", "--before", "2999-01-01")
    refused.check_clear("CONFIRMATION_MISSING", 2, "120 events")
    assert "Would remove 0 files" in cli.ok("endpoint", "data", "delete", "sizes", "--before", "1d", "--yes")
    assert "90 days" in cli.ok("endpoint", "data", "retention", "sizes", "--days", "90")
    assert cli.json("endpoint", "show", "sizes")["dataRetentionDays"] == 90
    assert "for ever" in cli.ok("endpoint", "data", "retention", "sizes", "--days", "0")
