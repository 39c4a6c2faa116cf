"""Deployments without a scoring script: what may be asked, and where their sample lies; no server."""

import pytest

from stellwerk_inference.deployments import requests, rollouts
from stellwerk_platform.errors import PlatformError
from stellwerk_protos.common.v1.common_pb2 import File
from stellwerk_protos.inference.v1 import endpoints_pb2 as pb
from stellwerk_protos.registry.v1.models_pb2 import ModelVersion

WORKSPACE = "workspaces/demo"
SNAPSHOT = f"{WORKSPACE}/snapshots/{'a' * 64}"
MODEL = f"{WORKSPACE}/models/iris/versions/1"


def request(**changes: object) -> pb.CreateDeploymentRequest:
    fields = {
        "parent": f"{WORKSPACE}/endpoints/e",
        "deployment_id": "d",
        "models": [MODEL],
        "environment": f"{WORKSPACE}/environments/sk/versions/1",
        "compute": f"{WORKSPACE}/computes/local",
        **changes,
    }
    return pb.CreateDeploymentRequest(**fields)  # type: ignore[arg-type]


def files(*paths: str) -> list[File]:
    return [File(path=path, size_bytes=1) for path in paths]


def test_script_and_code_come_together_or_not_at_all() -> None:
    requests.check_request(request())
    requests.check_request(request(snapshot=SNAPSHOT, scoring_script="score.py"))


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"snapshot": SNAPSHOT}, "CODE_INCOMPLETE"),
        ({"scoring_script": "score.py"}, "CODE_INCOMPLETE"),
        ({"models": [MODEL, f"{WORKSPACE}/models/other/versions/1"]}, "SCRIPT_MISSING"),
    ],
)
def test_what_cannot_be_served_is_refused(wrong: dict[str, object], reason: str) -> None:
    with pytest.raises(PlatformError) as refused:
        requests.check_request(request(**wrong))
    assert refused.value.reason == reason
    assert refused.value.cure


@pytest.mark.parametrize(
    "paths", [["iris/MLmodel"], ["a.joblib", "notes.txt"], ["m/MLmodel", "m/a.pkl", "b.pkl"]]
)
def test_models_that_need_no_script(paths: list[str]) -> None:
    requests.check_without_script(request(), ModelVersion(name=MODEL, files=files(*paths)))


@pytest.mark.parametrize("paths", [[], ["weights.bin"], ["a.pkl", "b.pkl"]])
def test_models_that_need_one_are_named(paths: list[str]) -> None:
    with pytest.raises(PlatformError) as refused:
        requests.check_without_script(request(), ModelVersion(name=MODEL, files=files(*paths)))
    assert refused.value.reason == "MODEL_NEEDS_SCRIPT"
    assert MODEL in refused.value.message


def test_the_sample_is_the_example_beside_the_model() -> None:
    found = rollouts.sample_of(
        "", "", files("other/input_example.json", "iris/MLmodel", "iris/input_example.json")
    )
    assert found is not None
    assert found.path == "iris/input_example.json"
    both = files("MLmodel", "input_example.json", "serving_input_example.json")
    found = rollouts.sample_of("", "", both)
    assert found is not None
    assert found.path == "serving_input_example.json"
    assert rollouts.sample_of("", "", files("model.joblib")) is None
    found = rollouts.sample_of("ask.json", "", files("model.joblib", "ask.json"))
    assert found is not None
    assert found.path == "ask.json"
