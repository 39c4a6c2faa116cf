"""Models without a scoring script: deployed, tried with their own example, and scored over HTTP."""

import asyncio
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import httpx
import joblib
import pytest
from sklearn.linear_model import LogisticRegression

from services.scorer.tests.environments import python_with
from tests.system.support import Cli

pytestmark = pytest.mark.slow
WORKSPACE = "noscript"
_MLFLOW = ("mlflow-skinny==3.17.2", "scikit-learn", "pandas>=2", "numpy>=2")
_TRAIN = """
import sys, mlflow, pandas
from importlib.metadata import version
from sklearn.linear_model import LinearRegression
frame = pandas.DataFrame({"a": [0.0, 1.0, 2.0], "b": [1.0, 0.0, 1.0]})
model = LinearRegression().fit(frame, frame["a"] * 2 + frame["b"])
needs = [f"{name}=={version(name)}" for name in ("mlflow-skinny", "scikit-learn", "pandas", "cloudpickle")]
mlflow.sklearn.save_model(
    model, sys.argv[1], input_example=frame, pip_requirements=needs, serialization_format="cloudpickle"
)
"""


@pytest.fixture(scope="module")
def mlflow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as MLflow writes it: y = 2 a + b."""
    folder = tmp_path_factory.mktemp("mlflow") / "line"
    python = asyncio.run(python_with(*_MLFLOW))
    subprocess.run([python, "-W", "ignore", "-c", _TRAIN, folder], check=True)
    return folder


@pytest.fixture(scope="module")
def deployed(cli: Cli, mlflow_model: Path) -> dict[str, Any]:
    """The MLflow model behind an endpoint, in the environment that it describes itself."""
    cli.ok("model", "register", "line", "--path", mlflow_model)
    cli.ok("endpoint", "create", "lines")
    created: dict[str, Any] = cli.json(
        *("deployment", "create", "blue", "--endpoint", "lines", "--model", "line:1")
    )
    return created


def score(stack: dict[str, Any], owner_key: str, endpoint: str, body: Any) -> httpx.Response:
    url = f"{stack['gateway_url']}/endpoints/{WORKSPACE}/{endpoint}/score"
    return httpx.post(url, json=body, headers={"authorization": f"Bearer {owner_key}"}, timeout=30)


def test_an_mlflow_model_brings_its_environment_and_its_sample(
    cli: Cli, stack: dict[str, Any], owner_key: str, deployed: dict[str, Any]
) -> None:
    assert deployed["workload"]["environment"].endswith("/environments/mlflow-line/versions/1")
    assert "input_example.json) was answered" in deployed["reason"]["message"]
    assert "none: the model itself" in cli.ok("deployment", "show", "blue", "--endpoint", "lines")
    table = {"dataframe_split": {"columns": ["b", "a"], "data": [[1, 3]]}}
    assert score(stack, owner_key, "lines", table).json() == {"predict": [pytest.approx(7.0)]}
    wrong = score(stack, owner_key, "lines", {"dataframe_split": {"columns": ["a"], "data": [[1]]}})
    assert (wrong.status_code, wrong.json()["reason"]) == (400, "INVALID_INPUT")
    assert "Traceback" not in wrong.text


def test_a_scikit_learn_file_is_served_and_a_sample_of_it_is_tried(
    cli: Cli, stack: dict[str, Any], owner_key: str, deployed: dict[str, Any], tmp_path: Path
) -> None:
    rows = [[0.0, 1.0], [1.0, 0.0], [5.0, 5.0], [6.0, 5.0]]
    joblib.dump(LogisticRegression().fit(rows, [0, 0, 1, 1]), tmp_path / "model.joblib")
    (tmp_path / "ask.json").write_text(json.dumps({"data": rows}))
    cli.ok("model", "register", "iris", "--path", tmp_path)
    cli.ok("endpoint", "create", "irises")
    created = cli.json(
        *("deployment", "create", "blue", "--endpoint", "irises", "--model", "iris:1"),
        *("--environment", "mlflow-line", "--sample", "ask.json"),
    )
    assert "(ask.json) was answered" in created["reason"]["message"]
    assert score(stack, owner_key, "irises", {"data": rows[2:]}).json() == {"predict": [1, 1]}


def test_what_cannot_be_served_without_a_script_is_said_at_once(
    cli: Cli, deployed: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "weights.bin").write_text("1")
    cli.ok("model", "register", "weights", "--path", tmp_path)
    create = ("deployment", "create", "other", "--endpoint", "lines", "--model", "weights:1")
    cli.run(*create).check_clear("ENVIRONMENT_MISSING", 2, "weights:1", "--environment")
    named = (*create, "--environment", "mlflow-line")
    cli.run(*named).check_clear("MODEL_NEEDS_SCRIPT", 1, "weights", "MLmodel")
    cli.run(*named, "--model", "line:1").check_clear("SCRIPT_MISSING", 2, "2 models")


def test_a_model_is_tried_without_a_stack(mlflow_model: Path, tmp_path: Path) -> None:
    own = {name: value for name, value in os.environ.items() if not name.startswith("STELLWERK_")}
    cache = Path(own.get("XDG_CACHE_HOME") or Path.home() / ".cache", "uv")
    # Its own environments, and the packages that are here already.
    folders = {"XDG_CACHE_HOME": str(tmp_path), "UV_CACHE_DIR": own.get("UV_CACHE_DIR") or str(cache)}
    tried = Cli({**own, **folders, "STELLWERK_GRPC_ADDRESS": "127.0.0.1:9"}).run(
        *("deployment", "try", "--local", "--model", mlflow_model, "--port", "0"),
        *("--request", mlflow_model / "serving_input_example.json"),
    )
    assert tried.code == 0, tried.err
    assert json.loads(tried.out)["predict"] == pytest.approx([1, 2, 5])
