"""The first request to a deployment that sleeps: how long until its answer, and where the time goes."""

import statistics
import time
from collections import defaultdict
from pathlib import Path

import httpx

import stellwerk
from stellwerk_protos.inference.v1 import endpoints_pb2
from tests.bench.inference_endpoint import WORKSPACE, endpoint
from tests.bench.inference_peers import Target
from tests.bench.resources import Resources
from tests.bench.suite import Measurement, benchmark

ROUNDS = 5
_NAME = "digits-sleepy"
_SETTINGS = endpoints_pb2.ScaleSettings(min_replicas=0, max_replicas=1, scale_down_delay_seconds=2)
# Events on the way, in their order.
_STEPS = (
    *("inference.deployment.scaled", "compute.allocation.assigned", "compute.allocation.preparing"),
    *("compute.allocation.running", "inference.replica.ready"),
)


@benchmark("inference.scale_from_zero", unit="s (first answer)", better="lower", goal=1.5)
def scale_from_zero(resources: Resources) -> Measurement:
    """The model of the digits, its environment there already, no replica running."""
    status = resources.stack.status()
    key = Path(status["owner_key_file"]).read_text().strip()
    with (
        endpoint(resources, _NAME) as target,
        stellwerk.Client(
            grpc_address=status["grpc_address"], gateway_url=status["gateway_url"], api_key=key
        ) as client,
    ):
        workspace = client.workspace(WORKSPACE)
        workspace.loads.set_scale(_NAME, "blue", _SETTINGS)
        found, steps = [], defaultdict(list)
        for _ in range(ROUNDS):
            _until_asleep(workspace)
            began = time.time()
            found.append(_first_answer(target))
            for step, seconds in _steps(workspace, began).items():
                steps[step].append(seconds)
    for step, times in steps.items():
        print(f"  {step}: after {statistics.median(times):.2f} s")
    print(f"  answers: {', '.join(f'{seconds:.2f}' for seconds in found)} s")
    return Measurement(statistics.median(found), ROUNDS)


def _until_asleep(workspace: stellwerk.Workspace) -> None:
    """Returns when no replica runs, and what has stopped it has calmed down."""
    deadline = time.monotonic() + 60
    while workspace.deployments.get(_NAME, "blue").reason.code != "ASLEEP":
        if time.monotonic() > deadline:
            raise RuntimeError("The deployment does not fall asleep.")
        time.sleep(0.2)
    time.sleep(2.0)


def _first_answer(target: Target) -> float:
    began = time.perf_counter()
    answer = httpx.post(target.url, content=target.body, headers=target.headers, timeout=60)
    answer.raise_for_status()
    return time.perf_counter() - began


def _steps(workspace: stellwerk.Workspace, began: float) -> dict[str, float]:
    """Seconds from the request to each step."""
    time.sleep(1.0)
    events = workspace.events.list(limit=40, newest=True)
    times = {event.type: event.time.ToNanoseconds() / 1e9 for event in events}
    wanted = {step: times.get(f"stellwerk.{step}.v1", 0.0) - began for step in _STEPS}
    return {step: seconds for step, seconds in wanted.items() if seconds > 0}
