"""What a replica keeps of its requests: events in files, which the agent finds."""

import json
from pathlib import Path
from typing import Any

import pytest

from services.scorer.tests.support import BARE_PYTHON, StartScorer
from stellwerk_scorer.worker import collecting
from stellwerk_scorer.worker.collecting import Event, Settings, Writer

SOURCE = "workspaces/demo/endpoints/digits/deployments/blue"
ECHO = """
    def init(): pass
    def run(data): return {"got": len(data)}
"""
COLLECTING = """
    from azureml.ai.monitoring import Collector

    def init():
        global inputs, outputs
        inputs, outputs = Collector(name="model_inputs"), Collector("model_outputs")

    def run(data):
        context = inputs.collect([{"data": data}])
        outputs.collect([{"answer": 42}], context)
        return 42
"""


def settings(folder: Path, names: str, **more: str) -> dict[str, str]:
    return {
        "STELLWERK_SCORER_COLLECT": names,
        "STELLWERK_SCORER_COLLECT_FOLDER": str(folder),
        "STELLWERK_SCORER_DEPLOYMENT": SOURCE,
        **{f"STELLWERK_SCORER_COLLECT_{name}": value for name, value in more.items()},
    }


def events(folder: Path, collection: str = "") -> list[dict[str, Any]]:
    files = sorted(folder.glob(f"{collection}*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


async def test_request_and_answer_are_kept_and_belong_together(scorer: StartScorer, tmp_path: Path) -> None:
    folder = tmp_path / "collected"
    given = settings(folder, "request,response", HEADERS="x-customer")
    async with scorer(ECHO, **given) as running, running.http() as client:
        await running.line("ready")
        headers = {"x-request-id": "one", "x-customer": "acme", "content-type": "application/json"}
        await client.post("/score", content=b'{"data": [1, 2]}', headers=headers)
        await client.post("/score", content=b"\xff\xfe")
    request, second = events(folder, "request")
    answer, refused = events(folder, "response")
    assert request["specversion"] == "1.0"
    assert request["type"] == "azureml.inference.request"
    assert request["source"] == f"/{SOURCE}"
    assert request["correlationid"] == request["xrequestid"] == answer["correlationid"] == "one"
    assert request["data"] == {"data": [1, 2]}
    assert request["contentrange"] == "bytes 0-15/16"
    assert json.loads(request["capturedheaders"]) == {"x-customer": "acme"}
    assert (answer["data"], answer["statuscode"]) == ({"got": 16}, 200)
    assert request["modelversion"] == "3"
    assert second["data_base64"] == "//4="
    assert refused["statuscode"] == 400
    assert second["xrequestid"] == refused["xrequestid"]
    assert "Bearer" not in json.dumps(events(folder))


async def test_a_script_collects_with_azures_collector(scorer: StartScorer, tmp_path: Path) -> None:
    folder = tmp_path / "collected"
    given = settings(folder, "model_inputs,model_outputs")
    async with scorer(COLLECTING, BARE_PYTHON, **given) as running, running.http() as client:
        await running.line("ready")
        await client.post("/score", content=b"x", headers={"x-request-id": "one"})
        await client.post("/score", content=b"y")
        await client.post("/score", content=b"z", headers={"x-stellwerk-sample": "true"})
    inputs, outputs = events(folder, "model_inputs"), events(folder, "model_outputs")
    assert [item["data"] for item in inputs] == [[{"data": "x"}], [{"data": "y"}]]
    assert [item["correlationid"] for item in inputs] == [item["correlationid"] for item in outputs]
    assert inputs[0]["xrequestid"] == "one"
    assert inputs[0]["type"] == "azureml.inference.inputs"
    assert outputs[0]["type"] == "azureml.inference.outputs"


async def test_a_collector_that_is_wrong_is_an_error_of_the_script(
    scorer: StartScorer, tmp_path: Path
) -> None:
    script = """
        from azureml.ai.monitoring import Collector
        seen = []
        def init():
            global inputs, lenient
            inputs = Collector("model_inputs")
            lenient = Collector("model_inputs", on_error=seen.append)
        def run(data):
            lenient.collect(object())
            if "strict" in data: inputs.collect(object())
            return str(seen[0])
    """
    given = settings(tmp_path / "collected", "model_inputs")
    async with scorer(script, **given) as running, running.http() as client:
        await running.line("ready")
        assert "cannot be collected" in (await client.post("/score", content=b"x")).json()
        assert (await client.post("/score", content=b'"strict"')).status_code == 500


async def test_nothing_is_kept_that_was_not_asked_for(scorer: StartScorer, tmp_path: Path) -> None:
    folder = tmp_path / "collected"
    async with scorer(COLLECTING, **settings(folder, "request", PERCENT="0.0000001")) as running:
        await running.line("ready")
        async with running.http() as client:
            assert (await client.post("/score", content=b"x")).json() == 42
    assert events(folder) == []


def write(folder: Path, *bodies: bytes, **more: Any) -> Writer:
    writer = Writer(Settings(folder=str(folder), **more))
    for body in bodies:
        writer.put("request", Event("request", "id", "id", "application/json", body))
    return writer


def test_what_is_too_long_is_cut_and_marked(tmp_path: Path) -> None:
    write(tmp_path, b'{"name": "' + "ä".encode() * 20 + b'"}', max_bytes=15).close()
    (event,) = events(tmp_path)
    assert event["truncated"] is True
    assert event["data"] == '{"name": "ää'
    assert event["contentrange"] == "bytes 0-14/52"


@pytest.mark.parametrize("body", [b'{"a": NaN}', b"{", b"[" * 5_000])
def test_what_is_no_json_is_kept_as_text(tmp_path: Path, body: bytes) -> None:
    write(tmp_path, body).close()
    assert events(tmp_path)[0]["data"] == body.decode()


def test_sampling_keeps_its_share_and_all_of_a_request() -> None:
    kept = sum(Settings(percent=10).samples(f"request-{number}") for number in range(10_000))
    assert 800 < kept < 1_200
    assert all(Settings().samples(str(number)) for number in range(1_000))


def test_what_does_not_fit_into_memory_is_dropped_and_counted(tmp_path: Path) -> None:
    writer = Writer(Settings(folder=str(tmp_path)), queue_bytes=2_500)
    event = Event("request", "id", "id", "application/json", b"1")
    assert [writer.put("request", event) for _ in range(4)] == [True, True, False, False]
    writer.close()
    (file,) = tmp_path.iterdir()
    assert file.name.endswith("~2.jsonl")
    assert len(events(tmp_path)) == 2


def test_a_folder_that_nobody_empties_stays_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "_FOLDER_BYTES", 1)
    (tmp_path / "waiting.jsonl").write_bytes(b"12")
    write(tmp_path, b"1", b"2").close()
    assert [path.name for path in tmp_path.iterdir()] == ["waiting.jsonl"]
