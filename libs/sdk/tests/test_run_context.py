"""Logging inside a run."""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stellwerk
from stellwerk import StellwerkError, wal

SOURCE = Path(stellwerk.__file__).parent.parent
SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import stellwerk
before = set(sys.modules)
run = stellwerk.current_run()
run.log("loss", 0.3, step=1)
run.log_metrics({"loss": 0.2, "accuracy": 1})
run.log("loss", float("nan"))
assert str(run.input("di.gi-ts")) == "/data", run.input("di.gi-ts")
assert run.outputs.is_dir() and run.name == "workspaces/demo/runs/r1" and run.id == "r1"
assert not [name for name in sys.modules if name.split(".")[0] in ("grpc", "google", "httpx", "click")]
try:
    stellwerk.Client
except ImportError as error:
    assert "Add 'stellwerk' to the packages" in str(error), error
else:
    raise AssertionError("a client without grpc?")
"""


def points(folder: Path) -> list[tuple[str, int, float]]:
    found = []
    for path in sorted(folder.glob("*.wal")):
        records, _ = wal.read(path, 0)
        found += [point for record in records for point in record.points]
    return found


def test_a_bare_interpreter_can_log(tmp_path: Path) -> None:
    environment = {
        "STELLWERK_RUN": "workspaces/demo/runs/r1",
        "STELLWERK_METRICS_DIR": str(tmp_path / "wal"),
        "STELLWERK_INPUT_DI_GI_TS": "/data",
    }
    subprocess.run(
        [sys.executable, "-S", "-I", "-c", SCRIPT, str(SOURCE)], env=environment, cwd=tmp_path, check=True
    )
    *rest, last = points(tmp_path / "wal")
    assert rest == [("loss", 1, 0.3), ("loss", 2, 0.2), ("accuracy", 0, 1.0)]
    assert last[:2] == ("loss", 3)
    assert math.isnan(last[2])


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> stellwerk.RunContext:
    monkeypatch.setenv("STELLWERK_RUN", f"workspaces/demo/runs/{tmp_path.name}")
    monkeypatch.setenv("STELLWERK_METRICS_DIR", str(tmp_path / "wal"))
    return stellwerk.current_run()


def test_outside_of_a_run_the_cure_is_named() -> None:
    with pytest.raises(StellwerkError, match=r"NOT_IN_A_RUN.*stellwerk run submit"):
        stellwerk.current_run()


@pytest.mark.parametrize(
    ("name", "value", "step"),
    [
        ("loss", "0.3", None),
        ("loss", b"1", None),
        ("loss", None, None),
        ("loss", [1.0], None),
        ("loss", 1 + 2j, None),
        (3, 1.0, None),
        ("", 1.0, None),
        ("x" * 10_000, 1.0, None),
        ("\ud800", 1.0, None),
        ("loss", 1.0, 1.5),
        ("loss", 1.0, 2**63),
        (["loss"], 1.0, None),
        ("loss", np.zeros(3), None),
    ],
)
def test_what_is_no_metric_is_refused_at_once(
    run: stellwerk.RunContext, tmp_path: Path, name: Any, value: Any, step: Any
) -> None:
    with pytest.raises(ValueError, match=r"name|value|step"):
        run.log(name, value, step=step)
    if isinstance(name, str):
        with pytest.raises(ValueError, match=r"name|value|step"):
            run.log_metrics({"fine": 1.0, name: value}, step=step)
    assert points(tmp_path / "wal") == []


def test_numbers_of_every_kind(run: stellwerk.RunContext, tmp_path: Path) -> None:
    run.log_metrics(
        {"f32": np.float32(0.5), "i64": np.int64(3), "bool": True, "big": 10**400, "neg": -(10**400)}
    )
    run.log("é" * 500, math.inf, step=-1)
    run.log_metrics({})
    logged = {name: value for name, _, value in points(tmp_path / "wal")}
    assert logged == {"f32": 0.5, "i64": 3, "bool": 1, "big": math.inf, "neg": -math.inf, "é" * 500: math.inf}


def test_a_full_disk_is_told_once_and_the_training_goes_on(
    run: stellwerk.RunContext, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run.log("loss", 1)

    def full(*arguments: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    run.log("loss", 2)
    run.log("loss", 3)
    monkeypatch.undo()
    assert capfd.readouterr().err.count("No space left") == 1


def test_a_forked_child_has_a_file_of_its_own(run: stellwerk.RunContext, tmp_path: Path) -> None:
    run.log("loss", 1)
    script = (
        "import os, stellwerk\nrun = stellwerk.current_run()\nrun.log('a', 1)\n"
        "if os.fork() == 0:\n    run.log('a', 2)\n    os._exit(0)\nos.wait()\nrun.log('a', 3)"
    )
    folder = tmp_path / "forked"
    environment = {**os.environ, "STELLWERK_METRICS_DIR": str(folder), "PYTHONPATH": str(SOURCE)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    by_file = [[value for *_, value in wal.read(path, 0)[0][0].points] for path in folder.glob("*.wal")]
    assert sorted(by_file) == [[1.0], [2.0]]


def test_an_input_that_is_not_there_names_those_that_are(
    run: stellwerk.RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STELLWERK_INPUT_DIGITS", "/x")
    with pytest.raises(StellwerkError, match="it has: digits"):
        run.input("other")
