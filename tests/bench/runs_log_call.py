"""What one `run.log(...)` costs the script that calls it."""

import statistics
import time
from typing import Any

from stellwerk.recorder import Recorder
from tests.bench.resources import Resources
from tests.bench.suite import Measurement, benchmark

_CALLS = 20_000
_ROUNDS = 9
_METRICS = ("loss", "accuracy", "validation/loss", "validation/accuracy")


@benchmark(
    "runs.metrics.log_call",
    unit="µs",
    better="lower",
    goal=5,
    peer="list append of the same values as a dictionary",
)
def log_call(resources: Resources) -> Measurement:
    """Microseconds a call, each call a record in a write-ahead file; medians of interleaved rounds."""
    recorder = Recorder(resources.folder())
    kept: list[dict[str, Any]] = []
    ours, theirs = [], []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        for index in range(_CALLS):
            recorder.log(_METRICS[index & 3], 0.25)
        ours.append(time.perf_counter() - began)
        kept.clear()
        began = time.perf_counter()
        for index in range(_CALLS):
            kept.append({"name": _METRICS[index & 3], "value": 0.25, "time": time.time()})
        theirs.append(time.perf_counter() - began)
    per_call = 1e6 / _CALLS
    return Measurement(
        value=statistics.median(ours) * per_call,
        rounds=_ROUNDS,
        peer_value=statistics.median(theirs) * per_call,
    )
