"""Runs as users have them: everything that a script may log, interactive runs, searches, repeats."""

import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from stellwerk import StellwerkError, Workspace
from tests.system.support import Cli

WORKSPACE = "runs"
SCRIPT = """
import os, sys
import stellwerk

run = stellwerk.current_run()
run.log_params({"model": os.environ.get("MODEL", "mlp"), "rate": 0.1})
run.set_tag("stage", "first")
run.set_tag("stage", "second")
for step in range(1000):
    run.log("loss", 1 / (step + 1), step)
run.log_list("curve", [1, 2.5, float("nan")])
run.log_list("long", range(100_000))
run.log_row("confusion", label="three", count=3)
run.log_row("confusion", label="four", count=4)
run.log_table("table", {"x": [1, 2], "y": ["a", "b"]})
run.log_confusion_matrix("matrix", {"class_labels": ["a", "b"], "matrix": [[1, 2], [3, 4]]})
run.log_residuals("residuals", {"bin_edges": [0, 1, 2], "bin_counts": [3, 4]})

class Figure:
    def savefig(self, place):
        place.write_bytes(b"a picture")

run.log_image("picture", plot=Figure())
(run.outputs / "model.bin").write_bytes(b"model")
print("\\x1b[31mred\\x1b[0m")
for part in range(5):
    print(f"\\r{part} of 4", end="")
print()
for line in range(50):
    print(f"line {line}")
"""


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STELLWERK_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("code")
    (folder / "train.py").write_text(SCRIPT)
    (folder / "run.sh").write_text("#!/bin/sh\nexec python train.py\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "lib").mkdir()
    (folder / "lib" / "a.txt").write_text("a")
    (folder / "link").symlink_to("lib/a.txt")
    (folder / "deep").symlink_to("lib")
    return folder


@pytest.fixture(scope="module")
def trained(workspace: Workspace, code: Path) -> Any:
    run = workspace.runs.submit(
        "test -L link && cat deep/a.txt && ./run.sh", code=code, experiment="logging", tags={"by": "test"}
    ).wait()
    assert run.state == "Completed", (run.message.reason, "".join(run.log()))
    return run.refresh()


def test_everything_that_a_script_logs_arrives(trained: Any, tmp_path: Path) -> None:
    message = trained.message
    assert dict(message.params) == {"model": "mlp", "rate": "0.1"}
    assert (message.tags["stage"], message.tags["by"]) == ("second", "test")
    by_name: dict[str, list[Any]] = {}
    for record in trained.records():
        by_name.setdefault(record.name, []).append(record)
    assert by_name["curve"][0].value[:2] == [1, 2.5]
    assert by_name["curve"][0].value[2] != by_name["curve"][0].value[2]
    assert [record.value for record in by_name["long"]] == [list(range(100_000))]
    assert [row.value["label"] for row in by_name["confusion"]] == ["three", "four"]
    assert by_name["table"][0].value == {"x": [1, 2], "y": ["a", "b"]}
    assert by_name["matrix"][0].value["matrix"] == [[1, 2], [3, 4]]
    (picture,) = by_name["picture"]
    files = trained.download(tmp_path, path=picture.artifact)
    assert (tmp_path / files[0].path).read_bytes() == b"a picture"


def test_histories_are_exact_or_made_shorter(trained: Any, workspace: Workspace) -> None:
    exact = trained.history("loss")
    assert [point.step for point in exact] == list(range(1000))
    (sampled,) = workspace.metrics([trained], ["loss"], max_points=50)
    assert (sampled.total, len(sampled.points)) == (1000, 50)
    assert sampled.points[0] == exact[0]
    assert trained.histories("loss", method="exact")["loss"] == exact


def test_logs_are_shown_sanely(trained: Any, cli: Cli) -> None:
    assert "".join(trained.log(tail=2)) == "line 48\nline 49\n"
    (stamped,) = "".join(trained.log(tail=1, times=True)).splitlines()
    assert re.fullmatch(r"20\d\d-\S+Z line 49", stamped)
    text = cli.ok("run", "logs", trained.id)
    assert text.startswith("ared\n4 of 4\nline 0\n"), text[:100]
    assert "\x1b[31m" in cli.ok("run", "logs", trained.id, "--raw")
    assert cli.ok("run", "logs", trained.id, "--search", "LINE 17") == "line 17\n"


def test_a_snapshot_comes_back_as_an_archive_with_modes_and_links(trained: Any, tmp_path: Path) -> None:
    trained.download_snapshot(tmp_path / "code.zip")
    with zipfile.ZipFile(tmp_path / "code.zip") as archive:
        modes = {entry.filename: entry.external_attr >> 16 for entry in archive.infolist()}
        assert archive.read("link") == b"lib/a.txt"
        assert archive.read("train.py").decode() == SCRIPT
    assert modes["run.sh"] & 0o100
    assert not modes["train.py"] & 0o100
    trained.download_snapshot(tmp_path / "folder")
    assert os.readlink(tmp_path / "folder" / "link") == "lib/a.txt"


def test_a_run_is_found_repeated_and_compared(trained: Any, workspace: Workspace, cli: Cli) -> None:
    again = trained.resubmit(variables={"MODEL": "tree"}).wait()
    assert (again.state, again.message.cloned_from) == ("Completed", trained.name)
    assert again.message.workload.snapshot == trained.message.workload.snapshot
    query = "params.model = 'tree' AND metrics.loss < 0.5"
    # A search sees last values up to half a second late; the test's time limit ends the wait.
    while True:
        hits = list(workspace.runs.search(query, order_by="metrics.loss asc", metrics=["loss"]))
        if [(hit.run.name, round(hit.metrics["loss"], 6)) for hit in hits] == [(again.name, 0.001)]:
            break
    rows = {(row.group, row.key): list(row.values) for row in workspace.runs.compare([trained, again]).rows}
    assert rows["params", "model"] == ["mlp", "tree"]
    table = cli.ok("run", "search", query, "--metric", "loss")
    assert again.id in table
    assert trained.id not in table
    assert "tree" in cli.ok("run", "compare", trained.id, again.id)
    cli.run("run", "search", "params.model =").check_clear("INVALID_FILTER", 2)


def test_files_are_kept_with_a_run_by_hand(trained: Any, tmp_path: Path) -> None:
    (tmp_path / "report" / "sub").mkdir(parents=True)
    (tmp_path / "report" / "sub" / "größe.txt").write_text("ü")
    (tmp_path / "report" / "empty").write_bytes(b"")
    trained.upload(tmp_path / "report", "reports/one")
    trained.upload(tmp_path / "report" / "empty", "renamed")
    paths = [file.path for file in trained.artifacts("reports")]
    assert paths == ["reports/one/empty", "reports/one/sub/größe.txt"]
    target = tmp_path / "back"
    trained.download(target, path="reports")
    changed = target / "reports/one/empty"
    before = (target / "reports/one/sub/größe.txt").stat().st_ino
    changed.write_text("not what it was")
    trained.download(target, path="reports")
    assert changed.read_bytes() == b""
    assert (target / "reports/one/sub/größe.txt").stat().st_ino == before, (
        "what is right is not fetched again"
    )


def test_a_process_is_a_run_without_any_compute(workspace: Workspace, data_dir: Path) -> None:
    with workspace.start_run(experiment="by-hand", tags={"kind": "test"}) as run:
        for step in range(2_000):
            run.log("loss", 0.5, step=step)
        run.log_param("depth", 3)
        (run.outputs / "a.txt").write_text("kept")
        with run.child() as child:
            child.log("accuracy", 1.0)
            child_name = child.name
    done = workspace.runs.get(run.name)
    assert (done.state, dict(done.message.params)) == ("Completed", {"depth": "3"})
    assert [metric.count for metric in done.metrics()] == [2_000]
    assert [file.path for file in done.artifacts()] == ["outputs/a.txt"]
    assert [item.name for item in done.children()] == [child_name]
    assert list((data_dir / "interactive").iterdir()) == []


def test_a_block_that_raises_is_a_failed_run(workspace: Workspace) -> None:
    with pytest.raises(ZeroDivisionError), workspace.start_run() as run:
        run.log("loss", 1 / 0)
    done = workspace.runs.get(run.name)
    assert (done.state, done.message.reason.code) == ("Failed", "SCRIPT_FAILED")
    assert "ZeroDivisionError" in done.message.reason.message


@contextmanager
def _process(script: str, cli: Cli, data_dir: Path) -> Iterator["subprocess.Popen[str]"]:
    """A script of a person, outside every compute."""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env={**cli.environment, "STELLWERK_DATA_DIR": str(data_dir)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_what_a_killed_process_logged_is_delivered_afterwards(
    workspace: Workspace, cli: Cli, data_dir: Path
) -> None:
    script = (
        "import stellwerk, sys, threading\n"
        "with stellwerk.Client() as client, client.workspace().start_run(name='killed') as run:\n"
        "    for step in range(500): run.log('loss', step)\n"
        "    run._core.close()\n"  # nothing more is shipped: as with a network that is away
        "    for step in range(500): run.log('loss', step)\n"
        "    print('logged', flush=True)\n"
        "    threading.Event().wait()\n"
    )
    folder = data_dir / "interactive" / "killed"
    with _process(script, cli, data_dir) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "logged\n"
        cli.run("run", "ship", folder).check_clear("RUN_ALIVE", 1)
    shipped = cli.json("run", "ship", folder)
    assert (shipped["state"], shipped["reason"]["code"]) == ("RUN_STATE_FAILED", "PROCESS_LOST")
    (metric,) = workspace.runs.get("killed").metrics()
    assert metric.count == 1_000
    assert not folder.exists()
    cli.run("run", "ship", folder).check_clear("NO_RUN_FOLDER", 2)


def test_a_cancelled_process_is_interrupted(workspace: Workspace, cli: Cli, data_dir: Path) -> None:
    script = (
        "import stellwerk, time\n"
        "with stellwerk.Client() as client, client.workspace().start_run(name='asked') as run:\n"
        "    print('started', flush=True)\n"
        "    time.sleep(100)\n"
    )
    with _process(script, cli, data_dir) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        workspace.runs.cancel("asked", message="enough")
        _, err = process.communicate(timeout=240)
    assert "RunCanceled" in err
    assert workspace.runs.get("asked").wait().state == "Canceled"


def test_a_run_is_changed_hidden_and_removed(workspace: Workspace, cli: Cli) -> None:
    with workspace.start_run(experiment="away") as run:
        run.log("loss", 1.0)
    cli.ok("run", "update", run.id, "--tag", "best=yes", "--description", "the one")
    changed = workspace.runs.get(run.id)
    assert (changed.message.tags["best"], changed.message.description) == ("yes", "the one")
    changed.archive()
    assert workspace.runs.list(experiment="away") == []
    assert [item.name for item in workspace.runs.list(experiment="away", include_archived=True)] == [run.name]
    changed.restore()
    assert len(workspace.runs.list(experiment="away")) == 1
    cli.ok("experiment", "retention", "set", "away", "--keep-last", "5")
    assert "5" in cli.ok("experiment", "retention", "show", "away")
    assert cli.json("run", "remove", "--experiment", "away", "--dry-run")["runCount"] == "0"
    cli.run("run", "remove", run.id).check_clear("CONFIRMATION_MISSING", 2, "1 runs with 1 points")
    report = cli.json("run", "remove", run.id, "--yes")
    assert (report["runCount"], report["pointCount"], report["validateOnly"]) == ("1", "1", False)
    with pytest.raises(StellwerkError, match="NOT_FOUND"):
        workspace.runs.get(run.id)


def test_why_says_what_happened(trained: Any, cli: Cli) -> None:
    found = cli.json("why", trained.id)
    assert found["summary"]
    assert any(line["type"].endswith("run.completed.v1") for line in found["lines"])
    assert found["lines"][0]["eventId"] in cli.ok("why", trained.id)


def test_a_v1_run_configuration_is_followed(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "project" / ".azureml"
    folder.mkdir(parents=True)
    (folder.parent / "hello.py").write_text("import os, sys\nprint(sys.argv[1:], os.environ['WHO'])\n")
    (folder / "local.runconfig").write_text(
        "script: hello.py\narguments: [--name, a b]\ntarget: local\nframework: Python\nnodeCount: 1\n"
        "environmentVariables: {WHO: me}\nhistory: {outputCollection: true, directoriesToWatch: [logs]}\n"
    )
    run = cli.json("run", "submit", "-f", folder / "local.runconfig", "--detach")
    cli.ok("run", "watch", json.loads(json.dumps(run))["name"])
    assert cli.ok("run", "logs", run["name"]) == "['--name', 'a b'] me\n"
