"""Models without a scoring script: scikit-learn's pickles and MLflow's folders."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import joblib
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from services.scorer.tests.environments import python_with
from services.scorer.tests.support import StartScorer
from stellwerk_protos.open_inference import grpc_predict_v2_pb2 as pb
from stellwerk_protos.open_inference import grpc_predict_v2_pb2_grpc as pb_grpc
from stellwerk_scorer.worker.models import Predictor

NO_SCRIPT = {"STELLWERK_SCORER_SCRIPT": ""}
ROWS = np.array([[0.0, 1.0], [1.0, 0.0], [5.0, 5.0], [6.0, 5.0]])
INFER = "/v2/models/digits/infer"


@pytest.fixture(scope="module")
def model() -> LogisticRegression:
    """A classifier of two features."""
    return LogisticRegression().fit(ROWS, [0, 0, 1, 1])


def tensor(data: Any, shape: list[int], name: str = "x", datatype: str = "FP64") -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


async def test_a_scikit_learn_model(scorer: StartScorer, model: LogisticRegression, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    joblib.dump(model, tmp_path / "model" / "model.joblib")
    folder = {"AZUREML_MODEL_DIR": str(tmp_path / "model"), **NO_SCRIPT}
    async with scorer("", **folder) as running, (await running.ready()).http() as http:
        metadata = (await http.get("/v2/models/digits")).json()
        assert metadata["platform"] == "sklearn"
        assert metadata["inputs"] == [{"name": "data", "datatype": "FP64", "shape": [-1, 2]}]
        outputs = {output["name"]: output["datatype"] for output in metadata["outputs"]}
        assert (outputs["predict"], outputs["predict_proba"]) == ("INT64", "FP64")
        answer = await http.post(INFER, json={"inputs": [tensor(ROWS.tolist(), [4, 2])]})
        assert answer.json()["outputs"] == [
            {"name": "predict", "datatype": "INT64", "shape": [4], "data": [0, 0, 1, 1]}
        ]
        asked = {"inputs": [tensor([5, 5], [1, 2], datatype="FP32")], "outputs": [{"name": "predict_proba"}]}
        (output,) = (await http.post(INFER, json=asked)).json()["outputs"]
        assert output["data"] == pytest.approx(model.predict_proba([[5, 5]]).ravel().tolist())
        score = await http.post("/score", json={"data": [[5, 5]], "method": "decision_function"})
        assert score.json()["decision_function"] == pytest.approx(model.decision_function([[5, 5]]).tolist())
        assert (await http.post("/score", json=[[5, 5]])).json() == {"predict": [1]}
        await _refuses(http)
        async with running.channel() as channel:
            request = pb.ModelInferRequest(model_name="digits")
            request.inputs.add(name="x", datatype="FP64", shape=[4, 2])
            request.raw_input_contents.append(ROWS.tobytes())
            infer = pb_grpc.GRPCInferenceServiceStub(channel).ModelInfer
            response = await infer(request, metadata=running.metadata)
            assert np.frombuffer(response.raw_output_contents[0], "int64").tolist() == [0, 0, 1, 1]


async def _refuses(http: httpx.AsyncClient) -> None:
    wrong: list[tuple[str, Any, str]] = [
        ("/score", {"data": [[1, 2, 3]]}, "INVALID_INPUT"),
        ("/score", {"data": [["a", "b"]]}, "INVALID_INPUT"),
        ("/score", {"rows": [[1, 2]]}, "INVALID_INPUT"),
        ("/score", {"data": [[1, 2]], "method": "fit"}, "OUTPUT_NOT_FOUND"),
        (INFER, {"inputs": [tensor([1, 2, 3], [1, 3])]}, "INVALID_INPUT"),
        (INFER, {"inputs": [tensor([1, 2], [1, 2])], "outputs": [{"name": "y"}]}, "OUTPUT_NOT_FOUND"),
        (INFER, {"inputs": [tensor([1e300, 2], [1, 2], datatype="FP32")]}, "INVALID_TENSOR"),
    ]
    for path, body, reason in wrong:
        answer = await http.post(path, json=body)
        assert (answer.status_code, answer.json()["reason"]) == (400, reason), body
        assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("files", "reason", "says"),
    [
        ({}, "MODEL_NOT_FOUND", "it holds none"),
        ({"a.pkl": b"", "b.joblib": b""}, "MODEL_NOT_FOUND", "it holds a.pkl, b.joblib"),
        ({"a.pkl": b"no pickle"}, "MODEL_NOT_LOADED", "while its model was loaded"),
        (
            {"MLmodel": b"flavors:\n  python_function:\n    loader_module: mlflow.keras\n"},
            "MODULE_NOT_FOUND",
            "add mlflow",
        ),
    ],
)
async def test_folders_that_hold_no_model(
    scorer: StartScorer, tmp_path: Path, files: dict[str, bytes], reason: str, says: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    async with scorer("", AZUREML_MODEL_DIR=str(folder), **NO_SCRIPT) as running:
        assert await asyncio.wait_for(running.process.wait(), 60) == 3
        assert says in await running.line(f"stellwerk-scorer: {reason}: ")
        assert f"AZUREML_MODEL_DIR={folder}" in running.log or reason == "MODULE_NOT_FOUND"


TRAIN = """
import sys, mlflow, numpy, pandas
from sklearn.linear_model import LinearRegression
frame = pandas.DataFrame({"a": [0.0, 1.0, 2.0], "b": [1.0, 0.0, 1.0]})
model = LinearRegression().fit(frame, frame["a"] * 2 + frame["b"])
mlflow.sklearn.save_model(
    model, sys.argv[1], input_example=frame, pip_requirements=[], serialization_format="cloudpickle"
)
"""


async def test_an_mlflow_model(scorer: StartScorer, tmp_path: Path) -> None:
    python = await python_with("mlflow-skinny==3.17.2", "scikit-learn", "pandas>=2", "numpy>=2")
    folder = tmp_path / "model"
    trained = await asyncio.create_subprocess_exec(python, "-W", "ignore", "-c", TRAIN, str(folder))
    assert await trained.wait() == 0
    served = {"AZUREML_MODEL_DIR": str(folder), **NO_SCRIPT}
    async with scorer("", python, **served) as running, (await running.ready()).http() as http:
        assert (await http.get("/v2/models/digits")).json()["platform"] == "mlflow"
        columns = {"columns": ["b", "a"], "data": [[1, 3]]}
        bodies = [
            {"input_data": columns},
            {"dataframe_split": columns},
            {"inputs": [{"a": 3, "b": 1}]},
            {"inputs": {"a": 3, "b": 1}},
            columns,
        ]
        for body in bodies:
            answer = await http.post("/score", json=body)
            assert answer.json().get("predict") == pytest.approx([7.0]), answer.text
        by_column = [tensor([1], [1, 1], "b"), tensor([3], [1], "a")]
        for inputs in (by_column, [tensor([3, 1], [1, 2])]):
            answer = await http.post(INFER, json={"inputs": inputs})
            assert answer.json()["outputs"][0]["data"] == pytest.approx([7.0]), answer.text
        answer = await http.post("/score", json={"input_data": {"columns": ["a"], "data": [[1]]}})
        assert (answer.status_code, answer.json()["reason"]) == (400, "INVALID_INPUT")
    # Without mlflow in the environment, its scikit-learn model is served all the same.
    async with scorer("", **served) as running:
        await running.line("no mlflow")


def test_parameters_reach_an_mlflow_model_and_its_table_comes_back_by_names() -> None:
    class Table:
        columns = ("y",)

        def __init__(self, value: float) -> None:
            self.value = value

        def to_dict(self, orient: str) -> list[dict[str, float]]:
            return [{"y": self.value}]

    def predict(rows: Any, params: dict[str, float] | None = None) -> Table:
        return Table(float(rows.sum()) * (params or {"k": 1})["k"])

    model = Predictor({"predict": predict}, "mlflow", [], None)
    for body, answer in ((b'{"inputs": [[2]], "params": {"k": 3}}', 6.0), (b'{"inputs": [[2]]}', 2.0)):
        assert model.prepare(False, b"", body)() == {"predict": [{"y": answer}]}


def test_a_model_of_arrays_gets_the_type_that_its_signature_names() -> None:
    def predict(rows: Any) -> Any:
        assert isinstance(rows, np.ndarray)
        return [str(rows.dtype)]

    model = Predictor({"predict": predict}, "mlflow", [], None, tensor=np.dtype("float64"))
    assert model.prepare(False, b"", b'{"inputs": [[1, 2]]}')()["predict"] == ["float64"]
    meta = b'{"inputs": [["x", "FP32", [1, 1], 4]], "outputs": []}'
    assert model.prepare(True, meta, bytes(4))()["predict"] == ["float64"]
