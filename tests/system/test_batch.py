"""Datasets are scored in mini-batches: what users of the command line, of curl and of the SDK see."""

import json
import subprocess
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from stellwerk import StellwerkError, Workspace
from tests.system.support import Cli

WORKSPACE = "batch"
PAGES = 53
SCRIPT = """
    import time
    from pathlib import Path

    def init():
        pass

    def run(mini_batch):
        pages = [Path(path) for path in mini_batch]
        if any(page.parent.name == "slow" for page in pages):
            time.sleep(600)
        if any(page.read_text() == "broken" for page in pages):
            raise ValueError("This page is torn.")
        return [f"{page.name}: {page.read_text()}" for page in pages if page.read_text()]
"""


def rows(folder: Path) -> list[str]:
    """What a job has written, line by line."""
    return [json.loads(line)["prediction"] for line in (folder / "rows.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module", autouse=True)
def deployment(cli: Cli, workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A deployment with up to two replicas, and pages of all kinds to score."""
    folder = tmp_path_factory.mktemp("batch")
    for name in ("code", "pages/good", "pages/bad", "pages/slow"):
        (folder / name).mkdir(parents=True)
    (folder / "code" / "score.py").write_text(dedent(SCRIPT))
    (folder / "model.txt").write_text("none")
    for number in range(PAGES):
        (folder / "pages" / "good" / f"{number:02}").write_text(f"text {number}")
    for name, text in (("1", "fine"), ("2", "broken"), ("3", ""), ("4", "fine too")):
        (folder / "pages" / "bad" / name).write_text(text)
    (folder / "pages" / "slow" / "1").write_text("text")
    cli.ok("environment", "create", "bare")
    cli.ok("model", "register", "none", "--path", folder / "model.txt")
    cli.ok("dataset", "create", "pages", folder / "pages")
    cli.ok("endpoint", "create", "reader", "--batch")
    cli.ok(
        *("deployment", "create", "blue", "--endpoint", "reader", "--model", "none:1"),
        *("--environment", "bare", "--code", folder / "code", "--replicas", "2"),
        *("--mini-batch-size", "4", "--max-retries", "0", "--output-file", "rows.jsonl"),
    )


def test_every_file_is_in_the_results_once_and_in_order(cli: Cli, tmp_path: Path) -> None:
    submitted = cli.run("batch", "submit", "reader", "pages", "--path", "good/", "--name", "all")
    assert submitted.code == 0, submitted
    assert f"{PAGES}/{PAGES} files" in submitted.out
    assert "Running" in submitted.err
    cli.ok("batch", "download", "reader", "all", "--to", tmp_path)
    assert rows(tmp_path) == [f"{number:02}: text {number}" for number in range(PAGES)]
    shown = cli.json("batch", "show", "reader", "all")
    assert shown["output"] == f"workspaces/{WORKSPACE}/datasets/reader-results/versions/1"
    assert (shown["progress"]["miniBatchCount"], shown["progress"]["rowCount"]) == (14, str(PAGES))
    cli.ok("dataset", "download", "reader-results:1", "--to", tmp_path / "again")
    assert rows(tmp_path / "again") == rows(tmp_path)
    # What somebody has written there stays, unless told otherwise.
    cli.ok("batch", "download", "reader", "all", "--to", tmp_path)
    (tmp_path / "rows.jsonl").write_text("mine")
    download = ("batch", "download", "reader", "all", "--to", tmp_path)
    cli.run(*download).check_clear("LOCAL_FILES_DIFFER", 1, "rows.jsonl", "--overwrite")
    assert (tmp_path / "rows.jsonl").read_text() == "mine"
    cli.ok(*download, "--overwrite")
    assert rows(tmp_path / "again") == rows(tmp_path)
    listed = cli.json("batch", "mini-batches", "reader", "all")
    assert [item["fileCount"] for item in listed] == [4] * 13 + [1]
    assert "results are datasets/reader-results/versions/1" in cli.ok("why", "endpoints/reader/jobs/all")


def test_what_fails_is_named_and_counted_and_the_rest_is_there(cli: Cli, tmp_path: Path) -> None:
    submit = ("batch", "submit", "reader", "pages:1", "--path", "bad/", "--mini-batch-size", "1")
    lenient = cli.run(*submit, "--name", "lenient")
    assert lenient.code == 0, lenient
    cli.ok("batch", "download", "reader", "lenient", "--to", tmp_path)
    assert rows(tmp_path) == ["1: fine", "4: fine too"]
    progress = cli.json("batch", "show", "reader", "lenient")["progress"]
    assert (progress["succeededFileCount"], progress["failedFileCount"]) == ("2", "2")
    (failed,) = cli.json("batch", "mini-batches", "reader", "lenient", "--state", "failed")
    assert "This page is torn." in failed["reason"]["message"]
    assert "Traceback" in cli.ok("deployment", "logs", "reader", "blue", "--replica", failed["replica"])

    strict = cli.run(*submit, "--error-threshold", "1", "--name", "strict")
    assert strict.code == 1
    assert "ERROR_THRESHOLD_EXCEEDED" in strict.out
    cli.run("batch", "download", "reader", "strict").check_clear("NO_RESULTS", 1, "batch show")


def test_curl_starts_a_job_and_stops_it(cli: Cli, stack: dict[str, Any], owner_key: str) -> None:
    url = stack["gateway_url"] + cli.json("endpoint", "show", "reader")["path"] + "/jobs"

    def curl(*arguments: str) -> Any:
        command = ["curl", "--silent", "--fail-with-body", "-H", f"authorization: Bearer {owner_key}"]
        return json.loads(subprocess.run([*command, *arguments], capture_output=True, check=True).stdout)

    body = json.dumps({"input": "pages:1", "input_path": "slow/", "job_id": "stuck"})
    started = curl("-H", "content-type: application/json", "-d", body, url)
    assert started["name"].endswith("/endpoints/reader/jobs/stuck")
    assert curl(f"{url}/stuck")["input"].endswith("/datasets/pages/versions/1")
    busy = cli.run("deployment", "delete", "blue", "--endpoint", "reader")
    assert busy.code == 1, busy
    asked = cli.run("endpoint", "delete", "reader")
    asked.check_clear("CONFIRMATION_MISSING", 2, "not over are canceled: stuck (", "--yes")
    assert [job["name"].rsplit("/", 1)[-1] for job in cli.json("batch", "list", "--open")] == ["stuck"]
    curl("-X", "POST", f"{url}/stuck/cancel")
    watched = cli.run("batch", "watch", "reader", "stuck")
    assert (watched.code, "Canceled" in watched.out) == (1, True), watched
    assert "stuck" in {job["name"].rsplit("/", 1)[-1] for job in curl(url)["batchJobs"]}


def test_results_may_be_a_file_for_each(workspace: Workspace, tmp_path: Path) -> None:
    job = workspace.batches.submit("reader", "pages", path="good/0", output_action="by-file", name="files")
    assert job.wait().state == "Completed", job.message.reason
    files = job.download(tmp_path)
    assert [file.path for file in files] == [f"good/{number:02}.json" for number in range(10)]
    assert json.loads((tmp_path / "good" / "07.json").read_text()) == "07: text 7"
    assert [found.id for found in workspace.batches.list("reader", limit=1)] == ["files"]


def test_what_cannot_be_scored_is_refused_with_a_cure(cli: Cli, workspace: Workspace) -> None:
    cli.run("batch", "submit", "reader", "pages", "--path", "none/").check_clear("NO_INPUT_FILES", 2)
    cli.run("batch", "submit", "reader", "nothing").check_clear("DATASET_VERSION_NOT_FOUND", 3)
    with pytest.raises(StellwerkError, match="INVALID_OUTPUT_ACTION"):
        workspace.batches.submit("reader", "pages", output_action="everything")
    cli.ok("endpoint", "create", "online")
    cli.run("batch", "submit", "online", "pages").check_clear("ENDPOINT_NOT_BATCH", 1)
    cli.run("endpoint", "keys", "regenerate", "reader", "--key", "primary").check_clear(
        "ENDPOINT_IS_BATCH", 1
    )
    cli.run("endpoint", "score", "reader", "--data", "{}").check_clear(
        "ENDPOINT_IS_BATCH", 2, "stellwerk batch submit reader"
    )
