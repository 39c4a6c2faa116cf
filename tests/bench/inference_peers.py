"""What the benchmarks of scoring need: models, the peers that serve them, and a load.

Each peer lives in a virtual environment of its own under the user's cache folder, made when
it is missing (that needs a package index, once), and serves the same model: a scikit-learn
LogisticRegression, or a RandomForest of 200 trees, on the digits (64 features, 10 classes).
The load over HTTP comes from `wrk` (Debian package `wrk`), over gRPC from `ghz`, which Go builds
when it is missing.
"""

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from stellwerk_launcher import ports
from stellwerk_launcher.tied import tied_to_parent
from stellwerk_protos.open_inference import grpc_predict_v2_pb2 as pb

# One thread of linear algebra for everybody: rows are small, and threads would only fight for two cores.
THREADS = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_START_SECONDS = 300.0
_GHZ = "github.com/bojand/ghz/cmd/ghz@v0.93.0"
PROTO = Path(__file__).parents[2] / "protos" / "inference" / "grpc_predict_v2.proto"
_ENVIRONMENTS = {
    "azureml": ("azureml-inference-server-http==1.5.1", "scikit-learn==1.9.1"),
    "mlserver": ("mlserver==1.7.1", "mlserver-sklearn==1.7.1", "scikit-learn==1.9.1", "uvloop<0.20"),
    "kserve": ("kserve==0.21.0", "scikit-learn==1.9.1"),
}
NAMES = {name: packages[0].replace("==", " ") for name, packages in _ENVIRONMENTS.items()}

TRAIN = """
import sys, joblib
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
x, y = load_digits(return_X_y=True)
model = LogisticRegression(max_iter=2000) if sys.argv[1] == "logistic" else RandomForestClassifier(200)
joblib.dump(model.fit(x, y), sys.argv[2])
"""
# As Azure's templates write it; ours serves the same file.
SCORE = """
import json, os
import joblib
import numpy as np

def init():
    global model
    model = joblib.load(os.path.join(os.environ["AZUREML_MODEL_DIR"], "model.joblib"))

def run(raw_data):
    data = np.array(json.loads(raw_data)["data"])
    return model.predict(data).tolist()
"""
_KSERVE = """
import sys, joblib
from kserve import InferOutput, InferResponse, Model, ModelServer

class Digits(Model):
    def load(self):
        self.model = joblib.load(sys.argv.pop())
        self.ready = True

    async def predict(self, payload, headers=None, response_headers=None):
        result = self.model.predict(payload.inputs[0].as_numpy())
        output = InferOutput(name="predict", shape=list(result.shape), datatype="INT64")
        output.set_data_from_numpy(result, binary_data=False)
        return InferResponse(response_id=payload.id, model_name="digits", infer_outputs=[output])

model = Digits("digits")
model.load()
ModelServer().start([model])
"""


@dataclass(frozen=True)
class Target:
    """A server that answers: where, and what is sent to it."""

    url: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    # host:port of its gRPC server, where it has one
    grpc: str = ""


@dataclass(frozen=True)
class Load:
    """What a load found: requests a second, milliseconds, and how many were not answered with 200."""

    rate: float
    p50: float
    p99: float
    errors: int


def rows(count: int = 1) -> list[list[float]]:
    """So many rows of 64 features, such as pixels are."""
    return [[float((7 * i + row) % 17) for i in range(64)] for row in range(count)]


def score_body(count: int = 1) -> bytes:
    """A body for `/score`."""
    return json.dumps({"data": rows(count)}).encode()


def infer_body(count: int = 1) -> bytes:
    """A body of the Open Inference Protocol."""
    data = [value for row in rows(count) for value in row]
    tensor = {"name": "x", "shape": [count, 64], "datatype": "FP64", "data": data}
    return json.dumps({"id": "1", "inputs": [tensor]}).encode()


def wrk(target: Target, connections: int, seconds: float) -> Load:
    """Sends the target's request over so many connections, each waiting for its answer."""
    found = shutil.which("wrk")
    if found is None:
        raise RuntimeError("the load generator wrk is missing: apt-get install wrk")
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "request.lua")
        script.write_text(_lua(target))
        command = [
            found,
            "-t1",
            f"-c{connections}",
            f"-d{seconds:g}s",
            "--latency",
            "-s",
            str(script),
            target.url,
        ]
        shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return _read(shown)


def infer_message(count: int = 1) -> bytes:
    """The same over gRPC, with raw tensors, as `tritonclient` sends it."""
    request = pb.ModelInferRequest(model_name="digits", id="1")
    request.inputs.add(name="x", datatype="FP64", shape=[count, 64])
    request.raw_input_contents.append(b"".join(struct.pack("<64d", *row) for row in rows(count)))
    return request.SerializeToString()


def ghz(address: str, message: bytes, connections: int, seconds: float, metadata: Mapping[str, str]) -> Load:
    """Sends `ModelInfer` over so many gRPC connections, each waiting for its answer."""
    with tempfile.TemporaryDirectory() as folder:
        body = Path(folder, "message")
        body.write_bytes(message)
        command = [
            *(str(_ghz()), "--insecure", "--proto", str(PROTO), "--format", "json"),
            *("--call", "inference.GRPCInferenceService.ModelInfer", "--binary-file", str(body)),
            *(
                "--metadata",
                json.dumps(dict(metadata)),
                "--duration",
                f"{seconds:g}s",
                "--duration-stop",
                "wait",
            ),
            *("--concurrency", str(connections), "--connections", str(connections), address),
        ]
        shown = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    errors = sum(count for code, count in shown["statusCodeDistribution"].items() if code != "OK")
    p50, p99 = (
        next(item["latency"] for item in shown["latencyDistribution"] if item["percentage"] == percent) / 1e6
        for percent in (50, 99)
    )
    return Load(shown["rps"], p50, p99, errors)


def _ghz() -> Path:
    """The load generator for gRPC; built by Go when it is missing."""
    found = shutil.which("ghz")
    if found is not None:
        return Path(found)
    folder = _cache() / "bin"
    if not (folder / "ghz").exists():
        go = shutil.which("go")
        if go is None:
            raise RuntimeError("the load generator ghz is missing, and Go to build it: github.com/bojand/ghz")
        variables = {"GOBIN": str(folder), "CGO_ENABLED": "0"}
        subprocess.run([go, "install", _GHZ], check=True, env={**os.environ, **variables})
    return folder / "ghz"


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stellwerk"


def _lua(target: Target) -> str:
    headers = {"content-type": "application/json", **target.headers}
    lines = [f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}" for name, value in headers.items()]
    body = target.body.decode()
    report = 'io.write(string.format("wrong %d\\n", s.errors.status + s.errors.timeout + s.errors.read))'
    return "\n".join(
        ['wrk.method = "POST"', f"wrk.body = [==[{body}]==]", *lines, f"function done(s, l, r) {report} end"]
    )


def _read(shown: str) -> Load:
    rate = re.search(r"Requests/sec:\s+([\d.]+)", shown)
    p50 = re.search(r"50%\s+([\d.]+)(us|ms|s)", shown)
    p99 = re.search(r"99%\s+([\d.]+)(us|ms|s)", shown)
    wrong = re.search(r"wrong (\d+)", shown)
    if rate is None or p50 is None or p99 is None or wrong is None:
        raise RuntimeError(f"wrk said what nobody understands: {shown}")
    return Load(float(rate[1]), _milliseconds(p50), _milliseconds(p99), int(wrong[1]))


def _milliseconds(found: re.Match[str]) -> float:
    return float(found[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[found[2]]


def environment(name: str) -> Path:
    """The folder of a peer's virtual environment; made when it is missing."""
    packages = _ENVIRONMENTS[name]
    folder = _cache() / packages[0].replace("==", "-")
    if (folder / "complete").exists():
        return folder
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv is None:
        raise RuntimeError("uv is needed to fetch the peer")
    folder.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], check=True)
    install = [uv, "pip", "install", "--quiet", "--compile-bytecode"]
    subprocess.run([*install, "--python", str(folder / "bin" / "python"), *packages], check=True)
    (folder / "complete").touch()
    return folder


def train(kind: str, path: Path, python: str = sys.executable) -> None:
    """Writes the model `logistic` or `forest`, pickled by the interpreter that is to read it."""
    subprocess.run([python, "-W", "ignore", "-c", TRAIN, kind, str(path)], check=True)


@contextmanager
def process(
    command: Sequence[str], folder: Path, variables: Mapping[str, str], ready: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A server in `folder`, from the moment that it answers at the URL `ready` to the end of the block."""
    log = folder / "log"
    with log.open("wb") as file:
        running = subprocess.Popen(
            tied_to_parent(list(command)),
            cwd=folder,
            env={**os.environ, **THREADS, **variables},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait(running, ready, log)
        yield running
    finally:
        # Some have workers in the session that they were given.
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(running.pid, number)
                running.wait(5)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


def _wait(running: subprocess.Popen[bytes], ready: str, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if running.poll() is not None:
            break
        try:
            if httpx.get(ready, trust_env=False).is_success:
                return
        except httpx.HTTPError:
            time.sleep(0.1)
    raise RuntimeError(f"the server does not answer at {ready}: {log.read_text()[-2000:]}")


@contextmanager
def peer(name: str, kind: str = "logistic", *, rows: int = 1, batching: bool = False) -> Iterator[Target]:
    """One of `azureml`, `mlserver`, `kserve`, serving a model; `batching` is MLServer's, adaptive."""
    python = environment(name) / "bin" / "python"
    with tempfile.TemporaryDirectory(prefix=f"stellwerk-bench-{name}-") as text:
        folder = Path(text)
        train(kind, folder / "model.joblib", str(python))
        start = {"azureml": _azureml, "mlserver": _mlserver, "kserve": _kserve}[name]
        chosen = ports.choose(["http", "grpc", "metrics"], {})
        command, variables, ready, target = start(python, folder, chosen, rows, batching)
        with process(command, folder, variables, ready):
            yield target


_Start = tuple[list[str], dict[str, str], str, Target]


def _azureml(python: Path, folder: Path, chosen: dict[str, int], rows: int, _batching: bool) -> _Start:
    (folder / "score.py").write_text(SCORE)
    url = f"http://127.0.0.1:{chosen['http']}"
    command = [
        str(python.with_name("azmlinfsrv")),
        "--entry_script",
        "score.py",
        "--port",
        str(chosen["http"]),
    ]
    variables = {"AZUREML_MODEL_DIR": str(folder), "AML_APP_ROOT": str(folder)}
    return command, variables, f"{url}/", Target(f"{url}/score", score_body(rows))


def _mlserver(python: Path, folder: Path, chosen: dict[str, int], rows: int, batching: bool) -> _Start:
    settings: dict[str, Any] = {
        "name": "digits",
        "implementation": "mlserver_sklearn.SKLearnModel",
        "parameters": {"uri": "./model.joblib"},
    }
    if batching:
        settings |= {"max_batch_size": 64, "max_batch_time": 0.01}
    (folder / "model-settings.json").write_text(json.dumps(settings))
    numbers = {f"{name}_port": port for name, port in chosen.items()}
    server = {"host": "127.0.0.1", "parallel_workers": 1, "debug": False, **numbers}
    (folder / "settings.json").write_text(json.dumps(server))
    url = f"http://127.0.0.1:{chosen['http']}/v2"
    target = Target(f"{url}/models/digits/infer", infer_body(rows), grpc=f"127.0.0.1:{chosen['grpc']}")
    return [str(python.with_name("mlserver")), "start", "."], {}, f"{url}/models/digits/ready", target


def _kserve(python: Path, folder: Path, chosen: dict[str, int], rows: int, _batching: bool) -> _Start:
    (folder / "serve.py").write_text(_KSERVE)
    url = f"http://127.0.0.1:{chosen['http']}/v2"
    flags = [f"--http_port={chosen['http']}", f"--grpc_port={chosen['grpc']}"]
    command = [str(python), "serve.py", *flags, "--enable_docs_url=false", "model.joblib"]
    target = Target(f"{url}/models/digits/infer", infer_body(rows), grpc=f"127.0.0.1:{chosen['grpc']}")
    return command, {}, f"{url}/models/digits/ready", target
