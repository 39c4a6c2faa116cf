"""Runs that a script on a compute makes below its own, and what becomes of them when it dies."""

import sys
from pathlib import Path
from typing import Any

from stellwerk import Workspace
from tests.system.support import Cli

WORKSPACE = "children"
# The environment of the script has no packages: it takes those of this test.
PACKAGES = ":".join(path for path in sys.path if path.endswith(("site-packages", "/src")))
SCRIPT = """
import os, signal
import stellwerk

run = stellwerk.current_run()
run.log("loss", 1.0)
with run.child("fold", display_name="fold 1") as fold:
    for step in range(3_000):
        fold.log("loss", 1 / (step + 1), step)
    (fold.logs / "fold.txt").write_text("the fold's own log\\n")
    with fold.child("trial") as trial:
        trial.log_param("rate", 0.1)
        trial.log("accuracy", 0.9)
        (trial.logs / "trial.txt").write_text("the trial's own log\\n")
        (trial.outputs / "model.bin").write_bytes(b"model")
"""
RESTARTED = """
import os, pathlib, signal
import stellwerk

run = stellwerk.current_run()
is_first = not pathlib.Path("was-here").exists()
pathlib.Path("was-here").touch()
with run.child("done") as done:
    done.log("loss", 1.0)
left = run.child("left").start()
left.log("loss", 1.0)
if is_first:
    os.kill(os.getpid(), signal.SIGKILL)
left.complete()
"""
KILLED = """
import os, signal
import stellwerk

run = stellwerk.current_run()
child = run.child("killed").start()
below = child.child("below").start()
child._core.close()  # nothing more is shipped: as with a network that is away
below._core.close()
for step in range(2_000):
    child.log("loss", float(step))
    below.log("loss", float(step))
(below.logs / "last.txt").write_text("last words\\n")
(below.outputs / "half.bin").write_bytes(b"half")
os.kill(os.getpid(), signal.SIGKILL)
"""


def submit(workspace: Workspace, folder: Path, script: str, command: str = "python train.py") -> Any:
    """The script's run, when it is over."""
    (folder / "train.py").write_text(script)
    return workspace.runs.submit(
        command, code=folder, experiment="folds", variables={"PYTHONPATH": PACKAGES}
    ).wait()


def test_a_script_makes_a_child_of_a_child(workspace: Workspace, cli: Cli, tmp_path: Path) -> None:
    top = submit(workspace, tmp_path, SCRIPT)
    assert top.state == "Completed", (top.message.reason, "".join(top.log()))
    fold, trial = top.children(deep=True)
    assert [run.state for run in (fold, trial)] == ["Completed", "Completed"]
    assert [run.id for run in (fold, trial)] == [f"{top.id}.fold", f"{top.id}.fold.trial"]
    assert (fold.message.parent_run, trial.message.parent_run) == (top.name, fold.name)
    assert {run.message.root_run for run in (fold, trial)} == {top.name}
    assert {run.message.experiment for run in (fold, trial)} == {top.message.experiment}
    assert [metric.count for metric in fold.metrics()] == [3_000]
    assert "".join(fold.log(log="logs/fold.txt")) == "the fold's own log\n"
    assert "".join(trial.log(log="logs/trial.txt")) == "the trial's own log\n"
    assert [file.path for file in trial.artifacts()] == ["outputs/model.bin"]
    assert dict(trial.refresh().message.params) == {"rate": "0.1"}
    listed = cli.ok("run", "children", top.id, "--deep").splitlines()
    assert [line.split("  Completed")[0].rstrip() for line in listed[1:]] == [fold.id, f"  {trial.id}"]
    assert top.name in cli.ok("why", trial.id)


def test_a_script_that_starts_again_in_its_run_goes_on_with_the_child_that_it_left_open(
    workspace: Workspace, tmp_path: Path
) -> None:
    top = submit(workspace, tmp_path, RESTARTED, "python train.py; python train.py")
    assert top.state == "Completed", (top.message.reason, "".join(top.log()))
    children = {run.id: run for run in top.children()}
    again = next(name for name in children if name.startswith(f"{top.id}.done--"))
    assert children.keys() == {f"{top.id}.done", again, f"{top.id}.left"}
    assert {run.state for run in children.values()} == {"Completed"}
    counts = {name: run.metrics()[0].count for name, run in children.items()}
    assert counts == {f"{top.id}.done": 1, again: 1, f"{top.id}.left": 2}
    assert {run.message.display_name for run in children.values()} == {"done", "left"}


def test_what_a_killed_script_left_is_delivered_and_its_children_end(
    workspace: Workspace, cli: Cli, tmp_path: Path
) -> None:
    top = submit(workspace, tmp_path, KILLED)
    assert (top.state, top.message.reason.code) == ("Failed", "SCRIPT_KILLED"), "".join(top.log())
    killed, below = top.children(deep=True)
    for run in (killed, below):
        assert (run.state, run.message.reason.code) == ("Failed", "PROCESS_LOST")
        assert [(metric.count, metric.last) for metric in run.metrics()] == [(2_000, 1_999.0)]
    assert "".join(below.log(log="logs/last.txt")) == "last words\n"
    assert [file.path for file in below.artifacts()] == ["outputs/half.bin"]
    assert "PROCESS_LOST" in cli.ok("why", below.id)


def test_a_child_on_a_compute_has_the_experiment_of_its_parent(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "hello.txt").write_text("hello")
    with workspace.start_run(experiment="above") as run:
        child = workspace.runs.submit("cat hello.txt", code=tmp_path, parent=run).wait()
    assert child.state == "Completed"
    assert child.message.parent_run == run.name
    assert child.message.experiment.endswith("/experiments/above")
