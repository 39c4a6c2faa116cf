"""The scorer alone beside the servers that people would take in its place, with the same model."""

import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from stellwerk_launcher import ports
from tests.bench import inference_peers as peers
from tests.bench.inference_peers import Load, Target
from tests.bench.resources import Resources
from tests.bench.suite import Measurement, benchmark

ROUNDS = 3
SECONDS = 3.0
_WARM_SECONDS = 1.0
_NAMED = {"STELLWERK_SCORER_MODEL_NAME": "digits"}
_MLSERVER = f"{peers.NAMES['mlserver']}, Open Inference"
_ITS_BATCHING = "MLServer's batching against none"


@contextmanager
def scorer(kind: str = "logistic", *, rows: int = 1, script: bool = True, batch: int = 1) -> Iterator[Target]:
    """Our scorer with one worker: with Azure's script over `/score`, without one over Open Inference."""
    with tempfile.TemporaryDirectory(prefix="stellwerk-bench-scorer-") as text:
        folder = Path(text)
        (folder / "model").mkdir()
        peers.train(kind, folder / "model" / "model.joblib")
        (folder / "score.py").write_text(peers.SCORE)
        chosen = ports.choose(["http", "grpc"], {})
        url, grpc = f"http://127.0.0.1:{chosen['http']}", f"127.0.0.1:{chosen['grpc']}"
        command = [sys.executable, "-m", "stellwerk_scorer", "--local", "--port", str(chosen["http"])]
        command += [
            "--grpc-port",
            str(chosen["grpc"]),
            "--model-dir",
            "model",
            "--max-batch-size",
            str(batch),
        ]
        if script:
            command += ["--script", "score.py"]
        with peers.process(command, folder, _NAMED, f"{url}/v2/health/ready"):
            if script:
                yield Target(f"{url}/score", peers.score_body(rows))
            else:
                yield Target(f"{url}/v2/models/digits/infer", peers.infer_body(rows), grpc=grpc)


def interleaved(
    targets: Sequence[Target], connections: int, rounds: int = ROUNDS, seconds: float = SECONDS
) -> list[Load]:
    """The median load of each target; they take turns, so that what else the machine does meets all."""
    found: list[list[Load]] = [[] for _ in targets]
    for target in targets:
        peers.wrk(target, connections, _WARM_SECONDS)
    for _ in range(rounds):
        for target, loads in zip(targets, found, strict=True):
            loads.append(peers.wrk(target, connections, seconds))
    return [_median(loads) for loads in found]


def _median(loads: Sequence[Load]) -> Load:
    def of(value: Callable[[Load], float]) -> float:
        return statistics.median(map(value, loads))

    errors = sum(load.errors for load in loads)
    return Load(of(lambda load: load.rate), of(lambda load: load.p50), of(lambda load: load.p99), errors)


def _faultless(load: Load) -> Load:
    if load.errors:
        raise RuntimeError(f"{load.errors} requests were not answered")
    return load


@benchmark(
    "scorer.http.c16", unit="requests/s", better="higher", peer=f"{peers.NAMES['azureml']}, the same script"
)
def script_over_http(resources: Resources) -> Measurement:
    """Azure's scoring script, 16 connections, one row a request."""
    with scorer() as ours, peers.peer("azureml") as theirs:
        own, other = interleaved([ours, theirs], 16)
    return Measurement(_faultless(own).rate, ROUNDS, other.rate)


@benchmark("scorer.infer.c16", unit="requests/s", better="higher", peer=_MLSERVER)
def model_over_open_inference(resources: Resources) -> Measurement:
    """A scikit-learn model without a script, 16 connections, one row a request."""
    with scorer(script=False) as ours, peers.peer("mlserver") as theirs:
        own, other = interleaved([ours, theirs], 16)
    return Measurement(_faultless(own).rate, ROUNDS, other.rate)


@benchmark(
    "scorer.infer.rows32",
    unit="requests/s",
    better="higher",
    peer=_MLSERVER,
)
def many_rows(resources: Resources) -> Measurement:
    """The same with 32 rows a request."""
    with scorer(script=False, rows=32) as ours, peers.peer("mlserver", rows=32) as theirs:
        own, other = interleaved([ours, theirs], 16)
    return Measurement(_faultless(own).rate, ROUNDS, other.rate)


@benchmark("scorer.grpc.c16", unit="requests/s", better="higher", peer=f"{peers.NAMES['kserve']}, gRPC")
def model_over_grpc(resources: Resources) -> Measurement:
    """The same over the scorer's own gRPC server, with raw tensors."""
    message = peers.infer_message()
    with scorer(script=False) as ours, peers.peer("kserve") as theirs:
        found: dict[str, list[Load]] = {ours.grpc: [], theirs.grpc: []}
        for _ in range(ROUNDS + 1):
            for address, loads in found.items():
                loads.append(peers.ghz(address, message, 16, SECONDS, {}))
        # The first of each warms up.
        own, other = (_median(loads[1:]) for loads in found.values())
    return Measurement(_faultless(own).rate, ROUNDS, other.rate)


@benchmark("scorer.http.c1", unit="ms (p50)", better="lower", goal=0.6)
def one_connection(resources: Resources) -> Measurement:
    """Latency of one caller."""
    with scorer() as ours:
        (own,) = interleaved([ours], 1)
    return Measurement(_faultless(own).p50, ROUNDS)


@benchmark(
    "scorer.batching.c64", unit="times as many requests/s", better="higher", goal=8, peer=_ITS_BATCHING
)
def batching_under_load(resources: Resources) -> Measurement:
    """RandomForest(200), 64 connections: adaptive batching against none."""
    return _batching(64, lambda batched, single: batched.rate / single.rate)


@benchmark("scorer.batching.c1", unit="times the latency (p50)", better="lower", goal=1.2, peer=_ITS_BATCHING)
def batching_of_one(resources: Resources) -> Measurement:
    """What batching costs a single caller."""
    return _batching(1, lambda batched, single: batched.p50 / single.p50)


def _batching(connections: int, compare: Callable[[Load, Load], float]) -> Measurement:
    with ExitStack() as stack:
        targets = [
            stack.enter_context(scorer("forest", script=False, batch=64)),
            stack.enter_context(scorer("forest", script=False)),
            stack.enter_context(peers.peer("mlserver", "forest", batching=True)),
            stack.enter_context(peers.peer("mlserver", "forest")),
        ]
        batched, single, their_batched, their_single = interleaved(targets, connections)
    return Measurement(
        compare(_faultless(batched), _faultless(single)), ROUNDS, compare(their_batched, their_single)
    )
