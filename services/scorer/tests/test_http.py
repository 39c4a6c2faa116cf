"""Scoring over HTTP, with the real process and the scripts that people write."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from services.scorer.tests.support import BARE_PYTHON, Keys, StartScorer

ECHO = """
    import json

    def init():
        print("init was called")

    def run(raw):
        return {"rows": json.loads(raw)["data"]}
"""
DOUBLE = """
    import json
    import numpy as np

    def init():
        pass

    def run(raw):
        return np.asarray(json.loads(raw)["data"], "float32") * 2
"""


def infer(data: Any, shape: list[int], datatype: str = "FP64", **more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "shape": shape, "datatype": datatype, "data": data}], **more}


async def test_score_under_an_interpreter_with_nothing_but_the_standard_library(scorer: StartScorer) -> None:
    async with scorer(ECHO, BARE_PYTHON) as running, (await running.ready()).http() as http:
        response = await http.post("/score", content='{"data": [[1, 2]]}', headers={"x-request-id": "abc"})
        assert (response.status_code, response.json()) == (200, {"rows": [[1, 2]]})
        assert response.headers["content-type"] == "application/json"
        assert response.headers["x-request-id"] == "abc"
        assert (await http.get("/")).text == "Healthy"
        assert len((await http.get("/")).headers["x-request-id"]) == 32
    assert running.process.returncode == 0
    assert running.log.count("init was called") == 1


async def test_metadata_and_health(scorer: StartScorer) -> None:
    async with scorer(ECHO) as running, (await running.ready()).http() as http:
        answers = {
            "/v2": {"name": "stellwerk", "version": "0.1.0", "extensions": ["binary_tensor_data"]},
            "/v2/health/live": {"live": True},
            "/v2/health/ready": {"ready": True},
            "/v2/models/digits/ready": {"name": "digits", "ready": True},
            "/v2/models/digits/versions/3/ready": {"name": "digits", "ready": True},
            "/v2/models/digits": {
                "name": "digits",
                "versions": ["3"],
                "platform": "stellwerk_script",
                "inputs": [],
                "outputs": [],
            },
        }
        for path, answer in answers.items():
            response = await http.get(path)
            assert (response.status_code, response.json()) == (200, answer), path
            assert (await http.head(path)).status_code == 200
        spellings = {
            "/v2/": "/v2",
            "/v2//models/dig%69ts": "/v2/models/digits",
            "/v2/health/ready/?probe=1": "/v2/health/ready",
        }
        for path, plain in spellings.items():
            assert (await http.get(path)).json() == answers[plain], path
        async with running.http(headers={}) as browser:
            assert (await browser.options("/swagger.json")).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        ("GET", "/nothing", 404, "PATH_NOT_FOUND"),
        ("GET", "/v2/models/letters", 404, "MODEL_NOT_FOUND"),
        ("GET", "/v2/models/digits/versions/4/ready", 404, "MODEL_NOT_FOUND"),
        ("DELETE", "/score", 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/v2/models/digits/infer", 405, "METHOD_NOT_ALLOWED"),
        ("POST", "/v2/health/ready", 405, "METHOD_NOT_ALLOWED"),
    ],
)
async def test_wrong_paths_and_methods(
    scorer: StartScorer, method: str, path: str, status: int, reason: str
) -> None:
    async with scorer(ECHO) as running, running.http() as http:
        response = await http.request(method, path)
        assert (response.status_code, response.json()["reason"]) == (status, reason)
        assert ("allow" in response.headers) == (status == 405)


async def test_nothing_but_health_is_open(scorer: StartScorer, keys: Keys) -> None:
    tokens = {
        "": "KEY_MISSING",
        "nonsense": "KEY_INVALID",
        Keys().token(): "KEY_INVALID",
        keys.token(expires_in_seconds=-1): "TOKEN_EXPIRED",
        keys.token("Workload"): "PERMISSION_DENIED",
        keys.token("Node"): "PERMISSION_DENIED",
    }
    async with scorer(ECHO) as running:
        await running.ready()
        for token, reason in tokens.items():
            async with running.http(headers={"authorization": f"Bearer {token}"} if token else {}) as http:
                for method, path in [("GET", "/"), ("POST", "/score"), ("GET", "/v2"), ("GET", "/nothing")]:
                    response = await http.request(method, path)
                    status = 403 if reason == "PERMISSION_DENIED" else 401
                    assert (response.status_code, response.json()["reason"]) == (status, reason)
                assert (await http.get("/v2/health/ready")).status_code == 200
        async with running.http(headers={"authorization": f"Bearer {keys.token('Service')}"}) as http:
            assert (await http.post("/score", content='{"data": 1}')).status_code == 200


async def test_open_inference(scorer: StartScorer) -> None:
    async with scorer(DOUBLE) as running, (await running.ready()).http() as http:
        for path in ("/v2/models/digits/infer", "/v2/models/digits/versions/3/infer"):
            for data in ([1, 2, 3, 4], [[1, 2], [3, 4]]):
                response = await http.post(path, json=infer(data, [2, 2], id="42"))
                assert response.status_code == 200, response.text
                assert response.json() == {
                    "model_name": "digits",
                    "model_version": "3",
                    "id": "42",
                    "outputs": [
                        {
                            "name": "output-0",
                            "datatype": "FP32",
                            "shape": [2, 2],
                            "data": [2.0, 4.0, 6.0, 8.0],
                        }
                    ],
                }


async def test_fields_that_clients_send_as_null_are_not_there(scorer: StartScorer) -> None:
    async with scorer(DOUBLE) as running, (await running.ready()).http() as http:
        body = infer([1.5], [1], id=None, parameters=None, outputs=None)
        body["inputs"][0]["parameters"] = None
        answer = await http.post("/v2/models/digits/infer", json=body, headers={"x-request-id": "abc"})
        assert answer.json()["outputs"][0]["data"] == [3.0]
        assert answer.json()["id"] == "abc"
        body["outputs"] = [{"name": "output-0", "parameters": None}]
        assert (await http.post("/v2/models/digits/infer", json=body)).status_code == 200


async def test_open_inference_with_several_inputs_and_outputs(scorer: StartScorer) -> None:
    script = """
        import json

        def init():
            pass

        def run(raw):
            data = json.loads(raw)
            return json.dumps({"sum": [a + b for a, b in zip(data["a"], data["b"])], "names": ["x", "y"]})
    """
    inputs = [
        {"name": name, "shape": [2], "datatype": "INT64", "data": data}
        for name, data in (("a", [1, 2]), ("b", [3, 4]))
    ]
    async with scorer(script) as running, (await running.ready()).http() as http:
        response = await http.post("/v2/models/digits/infer", json={"inputs": inputs})
        assert response.json()["outputs"] == [
            {"name": "sum", "datatype": "INT64", "shape": [2], "data": [4, 6]},
            {"name": "names", "datatype": "BYTES", "shape": [2], "data": ["x", "y"]},
        ]
        response = await http.post(
            "/v2/models/digits/infer", json={"inputs": inputs, "outputs": [{"name": "names"}]}
        )
        assert [output["name"] for output in response.json()["outputs"]] == ["names"]
        response = await http.post(
            "/v2/models/digits/infer", json={"inputs": inputs, "outputs": [{"name": "z"}]}
        )
        assert (response.status_code, response.json()["reason"]) == (400, "OUTPUT_NOT_FOUND")
        response = await http.post("/v2/models/digits/infer", json={"inputs": [inputs[0], inputs[0]]})
        assert (response.status_code, response.json()["reason"]) == (400, "INPUT_TWICE")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("{", "INVALID_JSON"),
        ("[" * 100_000, "INVALID_JSON"),
        ("[]", "INVALID_REQUEST"),
        ("{}", "INPUTS_MISSING"),
        ('{"inputs": {}}', "INVALID_REQUEST"),
        ('{"inputs": [{"name": 1}]}', "INVALID_REQUEST"),
        ('{"inputs": [{"name": "x", "datatype": "INT8"}]}', "INVALID_TENSOR"),
        ('{"inputs": [{"name": "x", "datatype": "INT8", "shape": [1]}]}', "INVALID_TENSOR"),
        (json.dumps(infer([1], [2])), "INVALID_TENSOR"),
        (json.dumps(infer([1], [1], "INT3")), "INVALID_TENSOR"),
        (json.dumps(infer([1], [1], id=7)), "INVALID_REQUEST"),
    ],
)
async def test_bad_open_inference_requests(scorer: StartScorer, body: str, reason: str) -> None:
    async with scorer(ECHO) as running, running.http() as http:
        response = await http.post("/v2/models/digits/infer", content=body)
        assert (response.status_code, response.json()["reason"]) == (400, reason)


async def test_binary_tensor_parts(scorer: StartScorer) -> None:
    np = pytest.importorskip("numpy")
    raw = np.array([[1.5, 2.5]], "<f4").tobytes()
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "x",
                    "shape": [1, 2],
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": len(raw)},
                }
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    async with scorer(DOUBLE) as running, (await running.ready()).http() as http:
        headers = {"inference-header-content-length": str(len(head))}
        response = await http.post("/v2/models/digits/infer", content=head + raw, headers=headers)
        assert response.status_code == 200, response.text
        size = int(response.headers["inference-header-content-length"])
        (output,) = json.loads(response.content[:size])["outputs"]
        assert output["parameters"] == {"binary_data_size": 8}
        assert np.frombuffer(response.content[size:], "<f4").tolist() == [3.0, 5.0]
        response = await http.post("/v2/models/digits/infer", content=head + raw + b"x", headers=headers)
        assert (response.status_code, response.json()["reason"]) == (400, "INVALID_REQUEST")


async def test_bodies_that_scripts_cannot_read(scorer: StartScorer) -> None:
    limit = {"STELLWERK_SCORER_MAX_BODY_BYTES": "1000"}
    async with scorer(ECHO, **limit) as running, (await running.ready()).http() as http:
        cases: list[tuple[bytes, dict[str, str], int, str]] = [
            (b"no json", {}, 400, "INVALID_JSON"),
            (b"", {}, 400, "INVALID_JSON"),
            (b'{"other": 1}', {}, 500, "SCRIPT_ERROR"),
            (b'"\xff"', {}, 400, "INVALID_UTF8"),
            (b" " * 3000, {}, 413, "PAYLOAD_TOO_LARGE"),
            (b"1", {"content-encoding": "br"}, 415, "CONTENT_ENCODING_UNSUPPORTED"),
            (b"1", {"x-request-id": "a" * 101}, 431, "REQUEST_ID_TOO_LONG"),
        ]
        for body, headers, status, reason in cases:
            response = await http.post("/score", content=body, headers=headers)
            assert (response.status_code, response.json()["reason"]) == (status, reason)
            failed = "x-ms-run-function-failed" in response.headers
            assert failed == (reason == "SCRIPT_ERROR")
            assert response.json().get("cure") or reason not in ("INVALID_JSON", "SCRIPT_ERROR")
        assert (await http.post("/score", content='{"data": 1}')).status_code == 200


RESULTS = """
    import numpy as np

    VALUES = {
        "array": np.arange(4, dtype="uint8").reshape(2, 2),
        "scalar": np.float32(0.5),
        "inside": {"label": np.int64(3), "all": [np.bool_(True)]},
        "text": "as it is",
        "nothing": None,
        "bytes": b"raw",
        "generator": (n for n in [1]),
        "nan": [float("nan")],
        "ragged": [[1], [1, 2]],
    }

    def init():
        pass

    def run(raw):
        if raw.startswith("{"):
            import json
            raw = json.loads(raw)["data"][0]
        return VALUES[raw.strip('"')]
"""


async def test_what_run_may_return(scorer: StartScorer) -> None:
    async with scorer(RESULTS) as running, (await running.ready()).http() as http:
        answers: dict[str, Any] = {
            "array": [[0, 1], [2, 3]],
            "scalar": 0.5,
            "inside": {"label": 3, "all": [True]},
            "text": "as it is",
            "nothing": {},
            "ragged": [[1], [1, 2]],
        }
        for name, answer in answers.items():
            response = await http.post("/score", json=name)
            assert (response.status_code, response.json()) == (200, answer)
        for name in ("bytes", "generator", "nan"):
            response = await http.post("/score", json=name)
            assert (response.status_code, response.json()["reason"]) == (500, "RESULT_NOT_JSON")
        tensors = {
            "array": ("UINT8", [2, 2], [0, 1, 2, 3]),
            "scalar": ("FP32", [], [0.5]),
            "text": ("BYTES", [1], ["as it is"]),
        }
        for name, (datatype, shape, data) in tensors.items():
            response = await http.post("/v2/models/digits/infer", json=infer([name], [1], "BYTES"))
            output = {"name": "output-0", "datatype": datatype, "shape": shape, "data": data}
            assert response.json()["outputs"] == [output]
        for name, reason in {"nan": "RESULT_NOT_JSON", "ragged": "RESULT_NOT_TENSOR"}.items():
            response = await http.post("/v2/models/digits/infer", json=infer([name], [1], "BYTES"))
            assert (response.status_code, response.json()["reason"]) == (500, reason)


async def test_an_error_of_the_script_shows_its_traceback_in_the_log_only(scorer: StartScorer) -> None:
    script = """
        def init():
            pass

        def run(raw):
            if raw == '"exit"':
                raise SystemExit(4)
            raise RuntimeError("the password is swordfish")
    """
    async with scorer(script) as running, (await running.ready()).http() as http:
        for body in ('"exit"', "1"):
            response = await http.post("/score", content=body)
            assert (response.status_code, response.json()["reason"]) == (500, "SCRIPT_ERROR")
            assert response.headers["x-ms-run-function-failed"] == "true"
            assert "swordfish" not in response.text
        assert "RuntimeError" in response.json()["error"]
        assert "`stellwerk deployment logs" in response.json()["cure"]
        await running.line("RuntimeError: the password is swordfish")
        assert 'score.py", line' in running.log
        assert "worker.py" not in running.log


async def test_request_headers_reach_a_script_that_asks_for_them_but_no_token_does(
    scorer: StartScorer,
) -> None:
    script = """
        def init():
            pass

        def run(raw, request_headers):
            return [request_headers["x-tenant"], "earer" in str(request_headers)]
    """
    async with scorer(script) as running, (await running.ready()).http() as http:
        response = await http.post("/score", content="1", headers={"x-tenant": "demo"})
        assert response.json() == ["demo", False]


async def test_many_requests_at_once_each_get_their_own_answer(scorer: StartScorer) -> None:
    async with scorer(ECHO) as running, (await running.ready()).http() as http:

        async def ask(number: int) -> httpx.Response:
            return await http.post("/score", json={"data": number})

        responses = await asyncio.gather(*(ask(number) for number in range(100)))
        assert [response.json()["rows"] for response in responses] == list(range(100))


async def test_large_bodies_pass_both_ways(scorer: StartScorer) -> None:
    async with scorer(ECHO) as running, (await running.ready()).http() as http:
        data = "a" * 5_000_000
        assert (await http.post("/score", json={"data": data})).json() == {"rows": data}
