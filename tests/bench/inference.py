"""Scoring through a whole endpoint, in turns with the servers that people use today.

Every round measures all of them for some seconds, one after the other, so that what else
the machine does meets everybody; the medians of the rounds are compared. An answer that is
not 200 fails the benchmark.
"""

import functools
import statistics
from collections.abc import Callable, Mapping
from contextlib import ExitStack

from tests.bench.grpc_load import h2load
from tests.bench.inference_endpoint import endpoint, gateway_bytes
from tests.bench.inference_peers import NAMES, Load, Target, peer, wrk
from tests.bench.resources import Resources
from tests.bench.suite import Measurement, benchmark

ROUNDS = 5
SECONDS = 4.0
_OURS = "stellwerk"
Run = Callable[[Target, int, float], Load]


def turns(targets: Mapping[str, Target], connections: int, run: Run = wrk) -> dict[str, list[Load]]:
    """The rounds by server; ours must have answered all requests."""
    found: dict[str, list[Load]] = {name: [] for name in targets}
    for target in targets.values():
        run(target, connections, 1.0)
    for _ in range(ROUNDS):
        for name, target in targets.items():
            found[name].append(run(target, connections, SECONDS))
    for name, loads in found.items():
        rate, p50, p99 = (median(loads, field) for field in ("rate", "p50", "p99"))
        print(f"  {name}: {rate:,.0f} requests/s, p50 {p50:.2f} ms, p99 {p99:.2f} ms")
    check(found[_OURS])
    return found


def median(loads: list[Load], field: str) -> float:
    """Of one number of the rounds."""
    return float(statistics.median(getattr(load, field) for load in loads))


def check(loads: list[Load]) -> None:
    """Raises if a request was not answered, or with an error."""
    if errors := sum(load.errors for load in loads):
        raise RuntimeError(f"{errors} requests failed")


def compared(found: Mapping[str, list[Load]], name: str, field: str = "rate") -> Measurement:
    """Ours beside a peer's."""
    return Measurement(median(found[_OURS], field), ROUNDS, median(found[name], field))


@functools.cache
def c16(resources: Resources) -> dict[str, list[Load]]:
    """Ours, Azure's server and MLServer with 16 connections; measured once for all rows that need it."""
    with ExitStack() as stack:
        targets = {
            _OURS: stack.enter_context(endpoint(resources, "digits")),
            "azureml": stack.enter_context(peer("azureml")),
            "mlserver": stack.enter_context(peer("mlserver")),
        }
        return turns(targets, 16)


@benchmark("inference.http.c16", unit="requests/s", better="higher", goal_ratio=4, peer=NAMES["azureml"])
def http_c16(resources: Resources) -> Measurement:
    """Rate with 16 connections."""
    return compared(c16(resources), "azureml")


@benchmark(
    "inference.http.c16.mlserver", unit="requests/s", better="higher", goal_ratio=3, peer=NAMES["mlserver"]
)
def http_c16_mlserver(resources: Resources) -> Measurement:
    """The same beside MLServer."""
    return compared(c16(resources), "mlserver")


@benchmark("inference.http.c16.p99", unit="ms", better="lower", goal_ratio=0.5, peer=NAMES["azureml"])
def http_c16_p99(resources: Resources) -> Measurement:
    """99th percentile with 16 connections."""
    return compared(c16(resources), "azureml", "p99")


@benchmark(
    "inference.http.c16.p99.mlserver", unit="ms", better="lower", goal_ratio=0.5, peer=NAMES["mlserver"]
)
def http_c16_p99_mlserver(resources: Resources) -> Measurement:
    """The same beside MLServer."""
    return compared(c16(resources), "mlserver", "p99")


@benchmark("inference.grpc.c16", unit="requests/s", better="higher", goal_ratio=2, peer=NAMES["kserve"])
def grpc_c16(resources: Resources) -> Measurement:
    """Rate over gRPC with 16 connections."""
    with endpoint(resources, "digits-grpc") as ours, peer("kserve") as theirs:
        return compared(turns({_OURS: ours, "kserve": theirs}, 16, h2load), "kserve")


@benchmark(
    "inference.http.rows32", unit="requests/s", better="higher", goal_ratio=2.5, peer=NAMES["mlserver"]
)
def http_rows32(resources: Resources) -> Measurement:
    """32 rows a request, 16 connections."""
    with endpoint(resources, "digits-rows", rows=32) as ours, peer("mlserver", rows=32) as theirs:
        return compared(turns({_OURS: ours, "mlserver": theirs}, 16), "mlserver")


@benchmark("inference.http.c1", unit="ms (p50)", better="lower", goal=0.6)
def http_c1(resources: Resources) -> Measurement:
    """Latency of one caller alone."""
    with endpoint(resources, "digits-one") as ours:
        return Measurement(median(turns({_OURS: ours}, 1)[_OURS], "p50"), ROUNDS)


@benchmark("inference.http.c64", unit="ms (p99)", better="lower", goal=30.0)
def http_c64(resources: Resources) -> Measurement:
    """64 connections for 60 s."""
    with endpoint(resources, "digits-many") as ours:
        wrk(ours, 64, 10)
        before = gateway_bytes(resources)
        load = wrk(ours, 64, 60)
        grown = gateway_bytes(resources) - before
    print(f"  {load.rate:,.0f} requests/s; the gateway has grown by {grown / 1e6:.1f} MB in 60 s")
    check([load])
    return Measurement(load.p99, 1)


@functools.cache
def batching(resources: Resources, connections: int) -> dict[str, list[Load]]:
    """A forest with and without adaptive batching, and MLServer's with it."""
    batched = {"STELLWERK_SCORER_MAX_BATCH_SIZE": "64", "STELLWERK_SCORER_MAX_BATCH_WAIT_MS": "10"}
    with ExitStack() as stack:
        targets = {
            _OURS: stack.enter_context(endpoint(resources, f"b{connections}", "forest", variables=batched)),
            "plain": stack.enter_context(endpoint(resources, f"p{connections}", "forest")),
            "mlserver": stack.enter_context(peer("mlserver", "forest", batching=True)),
        }
        return turns(targets, connections)


@benchmark(
    "inference.batching", unit="requests/s", better="higher", goal_ratio=8, peer="the same without batching"
)
def batching_c64(resources: Resources) -> Measurement:
    """RandomForest(200) with adaptive batching at 64 connections."""
    return compared(batching(resources, 64), "plain")


@benchmark("inference.batching.mlserver", unit="requests/s", better="higher", peer=NAMES["mlserver"])
def batching_mlserver(resources: Resources) -> Measurement:
    """The same beside MLServer with its batching."""
    return compared(batching(resources, 64), "mlserver")


@benchmark(
    "inference.batching.c1", unit="ms (p50)", better="lower", goal_ratio=1.2, peer="the same without batching"
)
def batching_c1(resources: Resources) -> Measurement:
    """What batching costs one caller alone."""
    return compared(batching(resources, 1), "plain", "p50")
