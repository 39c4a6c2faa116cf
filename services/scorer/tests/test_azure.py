"""Azure's scoring contract, with scripts as people write them for Azure's own server."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.scorer.tests.environments import python_with
from services.scorer.tests.support import BARE_PYTHON, Scorer, StartScorer

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="session")
async def azure_python() -> str:
    """An environment as users of Azure have it, but without any package of Azure's server."""
    return await python_with("inference-schema[numpy-support,pandas-support]==1.8", "numpy>=2", "pandas>=2")


def at(running: Scorer, **headers: str) -> httpx.AsyncClient:
    return running.http(headers={"authorization": f"Bearer {running.token}", **headers})


NUMPY_AND_PANDAS = """
    import numpy as np
    import pandas as pd
    from inference_schema.schema_decorators import input_schema, output_schema
    from inference_schema.parameter_types.numpy_parameter_type import NumpyParameterType
    from inference_schema.parameter_types.pandas_parameter_type import PandasParameterType
    from inference_schema.parameter_types.standard_py_parameter_type import StandardPythonParameterType

    def init():
        global factor
        factor = 2

    @input_schema("data", NumpyParameterType(np.array([[1.0, 2.0]]), enforce_shape=True))
    @input_schema("frame", PandasParameterType(pd.DataFrame({"a": [1], "b": ["x"]})), optional=True)
    @input_schema("label", StandardPythonParameterType("none"), optional=True)
    @input_schema("plain", NumpyParameterType(np.array([1])), convert_to_provided_type=False, optional=True)
    @output_schema(NumpyParameterType(np.array([1.0])))
    def run(data, frame=None, label="none", plain=None):
        assert isinstance(data, np.ndarray)
        columns = None if frame is None else sorted(frame.columns)
        return {"sum": (data * factor).sum(axis=1), "columns": columns, "label": label,
                "plain": type(plain).__name__}
"""


async def test_parameters_that_a_schema_describes(scorer: StartScorer, azure_python: str) -> None:
    async with scorer(NUMPY_AND_PANDAS, azure_python) as running, at(running, **JSON) as http:
        await running.ready()
        body = {"data": [[1, 2], [3, 4]], "frame": [{"a": 1, "b": "y"}], "label": "hot", "plain": [1]}
        answer = await http.post("/score", json=body)
        expected = {"sum": [6.0, 14.0], "columns": ["a", "b"], "label": "hot", "plain": "list"}
        assert answer.json() == expected
        assert (await http.post("/score", json={"data": [[1, 2]]})).json()["label"] == "none"
        marked = await http.post("/score", content=b'\xef\xbb\xbf{"data": [[1, 2]]}', headers=JSON)
        assert marked.status_code == 200, "some clients begin with a byte order mark"
        by_query = await http.get("/score", params={"data": "[[1, 2]]", "label": "hot"})
        assert by_query.json() == {"sum": [6.0], "columns": None, "label": "hot", "plain": "NoneType"}
        refused: list[tuple[Any, dict[str, str], int, str]] = [
            (b"", JSON, 400, "INVALID_JSON"),
            (b"[1]", JSON, 400, "INVALID_JSON"),
            (b"{", JSON, 400, "INVALID_JSON"),
            (b'{"data": "\xff"}', JSON, 400, "INVALID_UTF8"),
            (b'{"data":' + b"[" * 100_000, JSON, 400, "INVALID_JSON"),
            (b'{"Data": [[1, 2]]}', JSON, 400, "PARAMETER_MISSING"),
            (b'{"data": [[1, 2, 3]]}', JSON, 400, "INVALID_INPUT"),
            (b'{"data": [["a", "b"]]}', JSON, 400, "INVALID_INPUT"),
            (b'{"data": [[1, 2]]}', {"content-type": "text/plain"}, 415, "CONTENT_TYPE_UNSUPPORTED"),
        ]
        for content, headers, status, reason in refused:
            answer = await http.post("/score", content=content, headers=headers)
            assert (answer.status_code, answer.json()["reason"]) == (status, reason), content[:40]
        tensor = {"name": "input-0", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4]}
        answer = await http.post("/v2/models/digits/infer", json={"inputs": [{**tensor, "name": "data"}]})
        assert answer.status_code == 500, "two of its values are no tensors"
        assert answer.json()["reason"] == "RESULT_NOT_TENSOR"


async def test_swagger_describes_the_schema_in_three_versions(scorer: StartScorer, azure_python: str) -> None:
    names = {"SERVICE_NAME": "digits service", "SERVICE_VERSION": "7", "SERVICE_PATH_PREFIX": "/api/v1"}
    async with scorer(NUMPY_AND_PANDAS, azure_python, **names) as running, at(running) as http:
        await running.ready()
        documents = {}
        for query, key, number in (
            ("", "swagger", "2.0"),
            ("?version=2", "swagger", "2.0"),
            ("?version=2.0", "swagger", "2.0"),
            ("?version=3", "openapi", "3.0.3"),
            ("?version=3.0", "openapi", "3.0.3"),
            ("?version=3.1", "openapi", "3.1.0"),
        ):
            answer = await http.get(f"/swagger.json{query}")
            assert answer.status_code == 200, answer.text
            documents[query] = answer.json()
            assert documents[query][key] == number
        given = documents[""]["definitions"]["ServiceInput"]
        assert given["properties"]["data"]["type"] == "array"
        assert given["example"]["data"] == [[1.0, 2.0]]
        assert documents["?version=3"]["components"]["schemas"]["ServiceOutput"]["type"] == "array"
        assert set(documents["?version=3.1"]["paths"]) == {
            "/api/v1/",
            "/api/v1/score",
            "/api/v1/swagger.json",
        }
        assert documents[""]["info"]["title"] == "digits service"
        missing = await http.get("/swagger.json?version=4")
        assert (missing.status_code, missing.json()["reason"]) == (404, "SWAGGER_VERSION_NOT_FOUND")
        assert (await http.post("/swagger.json")).status_code == 405


POWER_BI = """
    import numpy as np
    from inference_schema.schema_decorators import input_schema, output_schema
    from inference_schema.parameter_types.numpy_parameter_type import NumpyParameterType
    from inference_schema.parameter_types.standard_py_parameter_type import StandardPythonParameterType

    def init():
        pass

    nested = {
        "rows": NumpyParameterType(np.array([[1.0, 2.0]])),
        "pairs": StandardPythonParameterType([NumpyParameterType(np.array([1]))]),
        "name": StandardPythonParameterType("a"),
    }

    @input_schema("Inputs", StandardPythonParameterType(nested))
    @input_schema("GlobalParameters", StandardPythonParameterType(1.0))
    @output_schema(StandardPythonParameterType({"Results": [0.5]}))
    def run(Inputs, GlobalParameters=1.0, request_headers=None):
        rows = Inputs["rows"]
        kinds = [type(rows).__name__, type(Inputs["pairs"][0]).__name__, Inputs["name"]]
        tenant = request_headers.get("x-tenant", "")
        return {"Results": (rows.sum(axis=1) * GlobalParameters).tolist(), "kinds": kinds, "tenant": tenant}
"""


async def test_nested_types_in_the_shape_of_power_bi(scorer: StartScorer, azure_python: str) -> None:
    async with scorer(POWER_BI, azure_python) as running, at(running, **{"x-tenant": "demo"}) as http:
        await running.ready()
        inputs = {"rows": [[1, 2], [3, 4]], "pairs": [[1], [2]], "name": "b"}
        answer = await http.post("/score", json={"Inputs": inputs, "GlobalParameters": 2})
        assert answer.json() == {
            "Results": [6.0, 14.0],
            "kinds": ["ndarray", "ndarray", "b"],
            "tenant": "demo",
        }
        assert (await http.post("/score", json={"Inputs": inputs})).json()["Results"] == [3.0, 7.0]
        for body in ({"inputs": inputs}, {"GlobalParameters": 2}):
            answer = await http.post("/score", json=body)
            assert (answer.status_code, answer.json()["reason"]) == (400, "PARAMETER_MISSING")


RAW_HTTP = """
    from azureml.contrib.services.aml_request import AMLRequest, rawhttp
    from azureml.contrib.services.aml_response import AMLResponse

    def init():
        pass

    @rawhttp
    def run(request):
        assert isinstance(request, AMLRequest)
        if request.args.get("what") == "teapot":
            return AMLResponse("short and stout", 418, {"X-Pot": "tea, coffee", "Content-Type": "text/plain"})
        if request.args.get("what") == "broken":
            return AMLResponse({"problem": "mine"}, 503, json_str=True)
        if request.args.get("what") == "cross":
            return AMLResponse("ok", 200, {"Access-Control-Allow-Origin": "https://script.example",
                                           "X-Bad": "a\\nb: c"})
        if request.args.get("what") == "parts":
            response = AMLResponse(iter(["a", b"b"]), "201 Created", {"content-type": "text/csv"})
            response.set_cookie("seen", "1", httponly=True)
            return response
        if request.args.get("what") == "lists":
            return {"args": request.args.to_dict(flat=False), "cookie": request.cookies["a"],
                    "names": [name for name, _ in request.headers], "data": request.data.decode(),
                    "form": request.form.get("n", type=int)}
        if request.files:
            file = request.files["image"]
            return {"name": file.filename, "size": len(file.read()), "note": request.form["note"]}
        if request.method == "GET":
            return AMLResponse(None, 200)
        return {"method": request.method, "path": request.path, "full": request.full_path,
                "many": request.args.getlist("a"), "type": request.content_type,
                "header": request.headers["X-Tenant"], "body": request.get_data(False).decode(),
                "json": request.get_json(silent=True), "token": "authorization" in request.headers}
"""


async def test_rawhttp_gets_the_request_and_answers_as_it_likes(scorer: StartScorer) -> None:
    async with scorer(RAW_HTTP, BARE_PYTHON) as running, at(running, **{"x-tenant": "demo"}) as http:
        await running.ready()
        answer = await http.post("/score?a=1&a=2", json={"x": 1})
        assert answer.json() == {
            "method": "POST",
            "path": "/score",
            "full": "/score?a=1&a=2",
            "many": ["1", "2"],
            "type": "application/json",
            "header": "demo",
            "body": '{"x":1}',
            "json": {"x": 1},
            "token": False,
        }
        assert (await http.post("/score", content=b"\x00\xff")).status_code == 500, "its own decode()"
        answer = await http.post("/score?what=teapot")
        assert (answer.status_code, answer.text) == (418, "short and stout")
        assert answer.headers["content-type"] == "text/plain"
        assert answer.headers.get_list("x-pot") == ["tea", "coffee"]
        assert "x-ms-run-function-failed" not in answer.headers
        answer = await http.get("/score?what=broken")
        assert (answer.status_code, answer.json()) == (503, {"problem": "mine"})
        assert answer.headers["x-ms-run-function-failed"] == "true"
        answer = await http.post("/score?what=cross")
        assert answer.headers["access-control-allow-origin"] == "https://script.example"
        assert "x-bad" not in answer.headers
        assert "b" not in answer.headers
        assert (await http.get("/score")).json() == {}
        assert (await http.head("/score")).status_code == 200
        answer = await http.post("/score?what=parts")
        assert (answer.status_code, answer.text) == (201, "ab")
        assert answer.headers["set-cookie"] == "seen=1; HttpOnly; Path=/"
        cookies = {"cookie": "a=1; b"}
        lists = (await http.post("/score?what=lists&n=1", data={"n": "2"}, headers=cookies)).json()
        assert (lists["args"], lists["cookie"]) == ({"what": ["lists"], "n": ["1"]}, "1")
        assert (lists["data"], lists["form"]) == ("", 2)
        assert "Cookie" in lists["names"]
        upload = await http.post("/score", data={"note": "hi"}, files={"image": ("a.png", b"\x89PNG\r\n")})
        assert upload.json() == {"name": "a.png", "size": 6, "note": "hi"}


FLASK = """
    import flask
    from azureml.contrib.services.aml_request import rawhttp

    def init():
        pass

    @rawhttp
    def run(request, request_headers):
        assert request.full_path == flask.request.full_path
        assert request_headers["X-Tenant"] == request.headers["x-tenant"]
        answer = flask.jsonify({"body": request.get_json(), "tags": request.args.getlist("tag")})
        return flask.make_response(answer, 201)
"""


async def test_rawhttp_gets_the_request_of_flask_from_a_script_that_uses_flask(scorer: StartScorer) -> None:
    python = await python_with("flask==3.1.3")
    async with scorer(FLASK, python) as running, at(running, **{"x-tenant": "demo"}) as http:
        await running.ready()
        answer = await http.post("/score?tag=1&tag=2", json={"x": 1})
        assert (answer.status_code, answer.json()) == (201, {"body": {"x": 1}, "tags": ["1", "2"]})
        tensor = {"name": "x", "shape": [1], "datatype": "INT64", "data": [7]}
        answer = await http.post("/v2/models/digits/infer", json={"inputs": [tensor]})
        assert answer.json()["reason"] == "RESULT_NOT_JSON", "it read the JSON, but a response is no tensor"


RAW = """
    import json, os
    from azureml.core.model import Model

    def init():
        print("path", Model.get_model_path("digits"))

    def run(raw_data):
        if raw_data == '"fail"':
            raise RuntimeError("swordfish")
        return json.loads(raw_data)
"""


async def test_ids_and_headers_of_an_undecorated_script(scorer: StartScorer, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "digits.pkl").touch()
    environment = {
        "AZUREML_MODEL_DIR": str(tmp_path / "model"),
        "AML_CORS_ORIGINS": "https://a.example, https://b.example",
        "HTTP_X_MS_SERVER_VERSION": "azmlinfsrv/1.5",
    }
    async with scorer(RAW, BARE_PYTHON, **environment) as running, at(running) as http:
        await running.ready()
        await running.line(f"path {tmp_path}/model/digits.pkl")
        sent = {
            "x-request-id": "one",
            "x-ms-client-request-id": "two",
            "TraceId": "three",
            "origin": "https://b.example",
        }
        for body in ("[1]", '"fail"'):
            answer = await http.post("/score", content=body, headers=sent)
            names = ("x-request-id", "x-ms-client-request-id", "x-ms-request-id", "traceid")
            assert [answer.headers[name] for name in names] == ["one", "two", "two", "three"]
            assert answer.headers["x-ms-server-version"] == "azmlinfsrv/1.5"
            assert answer.headers["access-control-allow-origin"] == "https://b.example"
            failed = answer.headers.get("x-ms-run-function-failed")
            assert (answer.status_code, failed) == ((200, None) if body == "[1]" else (500, "true"))
        assert float((await http.post("/score", content="[1]")).headers["x-ms-run-fn-exec-ms"]) >= 0
        legacy = await http.post("/score", content="[1]", headers={"x-ms-request-id": "old"})
        assert legacy.headers["x-ms-client-request-id"] == "old"
        assert "access-control-allow-origin" not in legacy.headers
        for name in ("x-request-id", "x-ms-client-request-id", "x-ms-request-id"):
            assert (await http.post("/score", content="[1]", headers={name: "a" * 101})).status_code == 431
        found = (await http.get("/score", params={"a": str(10**20), "b": ["x", "[2]"], "c": "null"})).json()
        assert found == {"a": 10**20, "b": ["x", [2]], "c": None}
        async with httpx.AsyncClient(base_url=f"http://{running.http_address}") as browser:
            asked = {
                "origin": "https://a.example",
                "access-control-request-method": "POST",
                "access-control-request-headers": "authorization",
            }
            answer = await browser.options("/score", headers=asked)
            assert answer.status_code == 200
            assert answer.headers["access-control-allow-headers"] == "authorization"
            assert "POST" in answer.headers["access-control-allow-methods"]
            assert (await browser.post("/score")).status_code == 401


async def test_a_swagger_file_of_the_user_replaces_ours(scorer: StartScorer, tmp_path: Path) -> None:
    (tmp_path / "swagger.json").write_text('{"swagger": "2.0", "mine": true}')
    (tmp_path / "swagger3.json").write_text('{"openapi": "3.0.0", "mine": true}')
    async with scorer("def init(): pass\ndef run(raw): pass\n", BARE_PYTHON) as running, at(running) as http:
        await running.ready()
        found = [(await http.get(f"/swagger.json?version={v}")).json().get("mine") for v in ("2", "3", "3.1")]
        assert found == [True, True, None]


@pytest.mark.parametrize(
    ("script", "reason", "says"),
    [
        ("def run(raw, /): pass", "RUN_SIGNATURE_INVALID", "positional-only"),
        ("def run(raw, **more): pass", "RUN_SIGNATURE_INVALID", "**kwargs"),
        ("def run(request_headers): pass", "RUN_SIGNATURE_INVALID", "needs a parameter"),
        ("import inference_schema\ndef run(raw): pass", "MODULE_NOT_FOUND", "add inference-schema to it"),
    ],
)
async def test_scripts_that_the_contract_refuses(
    scorer: StartScorer, script: str, reason: str, says: str
) -> None:
    async with scorer(f"def init(): pass\n{script}\n", BARE_PYTHON) as running:
        assert await asyncio.wait_for(running.process.wait(), 60) == 3
        assert says in await running.line(f"stellwerk-scorer: {reason}: ")


async def test_azures_variables_and_several_models(scorer: StartScorer, tmp_path: Path) -> None:
    """The layout of several models, an entry script below the app's root, a helper beside it."""
    root, models = tmp_path / "app", tmp_path / "models"
    (root / "src").mkdir(parents=True)
    (root / "src" / "helper.py").write_text("NAME = 'helper'\n")
    for version in ("2", "10"):
        (models / "digits" / version).mkdir(parents=True)
        (models / "digits" / version / "weights").write_text(version)
    (root / "main.py").write_text(
        "import helper\nfrom azureml.core import Model\n"
        "def init():\n    pass\n"
        "def run(raw):\n"
        "    paths = [Model.get_model_path('digits'), Model.get_model_path('digits', version=2)]\n"
        "    return [helper.NAME, *(open(path).read() for path in paths)]\n"
    )
    environment = {
        "AML_APP_ROOT": str(root),
        "AZUREML_ENTRY_SCRIPT": "main.py",
        "AZUREML_SOURCE_DIRECTORY": "src",
        "AZUREML_MODEL_DIR": str(models),
        "STELLWERK_SCORER_SCRIPT": "",
    }
    async with scorer("", BARE_PYTHON, **environment) as running, at(running) as http:
        await running.ready()
        assert (await http.post("/score", content="1")).json() == ["helper", "10", "2"]


def test_the_two_documents_of_a_script_without_schema_say_the_same() -> None:
    from stellwerk_scorer.worker import swagger

    documents = swagger.documents(None)
    assert set(documents) == {"2", "2.0", "3", "3.0", "3.1"}
    assert set(documents["2"]["paths"]) == set(documents["3"]["paths"])
    assert json.loads(json.dumps(documents)) == documents
