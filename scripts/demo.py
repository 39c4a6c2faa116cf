"""The main job, as a person does it: `make demo`.

Starts a stack of its own, trains a model on handwritten digits, registers and deploys
it, scores images that the training has not seen, and stops everything again. Every
step is a `stellwerk` command that is shown before it runs. The stack's data stays in
`.stellwerk/demo`, so that the next demo starts warm.
"""

import fcntl
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
from rich.console import Console
from rich.table import Table

from stellwerk_protos.open_inference import grpc_predict_v2_pb2 as oip
from stellwerk_protos.open_inference import grpc_predict_v2_pb2_grpc as oip_grpc

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "digits"
DATA_DIR = ROOT / ".stellwerk" / "demo"
FILES = DATA_DIR.with_name("demo-files")
STELLWERK = Path(sys.executable).with_name("stellwerk")
WORKSPACE = "demo"
GOAL_ACCURACY = 0.95

console = Console(highlight=False, soft_wrap=True)


class DemoError(Exception):
    """A step failed; the command has said why."""


class Demo:
    """The steps; each remembers how long it took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        # Another platform's address or key in the caller's environment is not for this stack.
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if name not in ("STELLWERK_GRPC_ADDRESS", "STELLWERK_GATEWAY_URL", "STELLWERK_API_KEY")
        } | {
            "STELLWERK_DATA_DIR": str(DATA_DIR),
            "STELLWERK_WORKSPACE": WORKSPACE,
        }

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Shows and times a phase."""
        console.rule(f"[bold]{name}[/bold]", align="left")
        begin = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - begin

    def run(self, *arguments: str | Path, show: bool = True, is_apart: bool = False) -> None:
        """Runs a `stellwerk` command whose output the reader sees.

        One that is `is_apart` is ended without a word by Ctrl-C, which it does not get itself.
        """
        self._start([STELLWERK, *arguments], capture=False, show=show, is_apart=is_apart)

    def ask(self, *arguments: str | Path, show: bool = True) -> Any:
        """Runs a `stellwerk` command and returns the JSON that it prints."""
        return json.loads(self._start([STELLWERK, *arguments, "--output", "json"], capture=True, show=show))

    def python(self, script: Path) -> None:
        """Runs one of the example's scripts in the platform's environment."""
        FILES.mkdir(parents=True, exist_ok=True)
        self._start([sys.executable, script], capture=False, show=True, folder=FILES)

    def _start(
        self,
        command: list[str | Path],
        *,
        capture: bool,
        show: bool,
        folder: Path | None = None,
        is_apart: bool = False,
    ) -> str:
        words = [str(word) for word in command]
        if show:
            short = [Path(words[0]).name, *(word.removeprefix(f"{ROOT}/") for word in words[1:])]
            console.print(f"[cyan]$ {shlex.join(short)}[/cyan]")
        done = subprocess.run(
            words,
            env=self.environment,
            cwd=folder,
            stdout=subprocess.PIPE if capture else None,
            text=True,
            check=False,
            start_new_session=is_apart,
        )
        if done.returncode != 0:
            raise DemoError(f"{shlex.join(words[:3])} … ended with exit code {done.returncode}")
        return done.stdout or ""


def start(demo: Demo) -> dict[str, Any]:
    """Starts the stack and makes the workspace, if it is not there from the last demo."""
    demo.run("up", "--detach")
    status: dict[str, Any] = demo.ask("status", show=False)
    demo.environment["STELLWERK_API_KEY_FILE"] = status["owner_key_file"]
    names = {item["name"] for item in demo.ask("workspace", "list", show=False)}
    if f"workspaces/{WORKSPACE}" not in names:
        demo.run("workspace", "create", WORKSPACE)
    return status


def prepare(demo: Demo) -> str:
    """Writes and registers the digits; returns the dataset version's number."""
    demo.python(EXAMPLE / "prepare.py")
    dataset = demo.ask("dataset", "create", "digits", FILES / "digits.csv")
    return str(dataset["version"])


def train(demo: Demo, dataset_version: str) -> dict[str, Any]:
    """Submits the training, follows it, and returns the run."""
    name = f"digits-{time.strftime('%Y%m%d-%H%M%S')}"
    demo.run(
        *("run", "submit", "-f", EXAMPLE / "job.yml", "--name", name),
        *("--input", f"digits=digits:{dataset_version}"),
        # On Ctrl-C it would say that the run goes on, which the end of the demo ends.
        is_apart=True,
    )
    run: dict[str, Any] = demo.ask("run", "show", name, show=False)
    metrics = demo.ask("run", "metrics", name, show=False)
    run["accuracy"] = next(float(metric["last"]) for metric in metrics if metric["metric"] == "accuracy")
    return run


def deploy(demo: Demo, run_id: str) -> tuple[str, dict[str, Any], str]:
    """Registers the model and puts it behind the endpoint; returns version, endpoint and deployment."""
    model = demo.ask("model", "register", "digits", "--run", run_id, "--path", "outputs/model.joblib")
    version = str(model["version"])
    names = {item["name"] for item in demo.ask("endpoint", "list", show=False)}
    if f"workspaces/{WORKSPACE}/endpoints/digits" not in names:
        demo.run("endpoint", "create", "digits")
    deployment = f"v{version}"
    demo.run(
        *("deployment", "create", deployment, "--endpoint", "digits", "--model", f"digits:{version}"),
        *("--environment", "digits", "--code", EXAMPLE, "--script", "score.py"),
    )
    demo.run("endpoint", "traffic", "digits", f"{deployment}=100")
    endpoint: dict[str, Any] = demo.ask("endpoint", "show", "digits", show=False)
    for old in demo.ask("deployment", "list", "--endpoint", "digits", show=False):
        old_id = old["name"].rsplit("/", 1)[-1]
        if old_id != deployment and old["state"] != "PROVISIONING_STATE_DELETED":
            demo.run("deployment", "delete", old_id, "--endpoint", "digits", show=False)
    return version, endpoint, deployment


def score(status: dict[str, Any], endpoint: dict[str, Any]) -> dict[str, str]:
    """Scores the held-out images in the three ways an endpoint can be called."""
    holdout = json.loads((FILES / "holdout.json").read_text())
    images, labels = holdout["request"]["data"], holdout["digits"]
    key = Path(status["owner_key_file"]).read_text().strip()
    url = status["gateway_url"] + endpoint["path"]
    headers = {"authorization": f"Bearer {key}"}
    results = {}
    with httpx.Client(headers=headers, timeout=30) as client:

        def plain(image: list[float]) -> int:
            return int(client.post(f"{url}/score", json={"data": [image]}).raise_for_status().json()[0])

        def open_inference(image: list[float]) -> int:
            tensor = {"name": "data", "shape": [1, len(image)], "datatype": "FP64", "data": image}
            answer = client.post(
                f"{url}/v2/models/digits/infer", json={"inputs": [tensor]}
            ).raise_for_status()
            return int(answer.json()["outputs"][0]["data"][0])

        results["HTTP /score"] = measured(plain, images, labels)
        results["HTTP Open Inference"] = measured(open_inference, images, labels)
    with grpc.insecure_channel(status["grpc_address"]) as channel:
        stub = oip_grpc.GRPCInferenceServiceStub(channel)
        metadata = (
            ("authorization", f"Bearer {key}"),
            ("stellwerk-endpoint", f"{WORKSPACE}/digits"),
        )

        def over_grpc(image: list[float]) -> int:
            request = oip.ModelInferRequest(model_name="digits")
            request.inputs.add(
                name="data", datatype="FP64", shape=[1, len(image)]
            ).contents.fp64_contents.extend(image)
            output = stub.ModelInfer(request, metadata=metadata, timeout=30).outputs[0].contents
            return int(output.int64_contents[0] if output.int64_contents else output.fp64_contents[0])

        results["gRPC Open Inference"] = measured(over_grpc, images, labels)
    return results


def measured(call: Any, images: list[list[float]], labels: list[int]) -> str:
    """Accuracy and latency over all images, one a request."""
    milliseconds, right = [], 0
    for image, label in zip(images, labels, strict=True):
        begin = time.perf_counter()
        right += call(image) == label
        milliseconds.append((time.perf_counter() - begin) * 1e3)
    p99 = sorted(milliseconds)[int(len(milliseconds) * 0.99)]
    return (
        f"{right} of {len(labels)} right ({right / len(labels):.1%}), "
        f"p50 {statistics.median(milliseconds):.1f} ms, p99 {p99:.1f} ms"
    )


def summarise(demo: Demo, rows: dict[str, str]) -> None:
    """What the demo found."""
    table = Table(title="The main job", show_header=False, title_justify="left")
    for name, value in rows.items():
        table.add_row(name, value)
    for name, seconds in demo.seconds.items():
        table.add_row(f"time: {name}", f"{seconds:.1f} s")
    table.add_row("time: all", f"{sum(demo.seconds.values()):.1f} s")
    console.print(table)


def main_job(demo: Demo) -> None:
    """From nothing to scored images."""
    with demo.phase("start"):
        status = start(demo)
    with demo.phase("data"):
        dataset_version = prepare(demo)
    with demo.phase("train"):
        run = train(demo, dataset_version)
    run_id = run["name"].rsplit("/", 1)[-1]
    with demo.phase("deploy"):
        version, endpoint, deployment = deploy(demo, run_id)
    with demo.phase("score"):
        results = score(status, endpoint)
        for name, result in results.items():
            console.print(f"{name}: {result}")
    with demo.phase("explain"):
        demo.run("events", "list", "--resource", f"runs/{run_id}")
        spans = demo.ask("trace", run_id)["spans"]
        for span in spans:
            if span["service"] == "agent" and "/" not in span["name"]:
                console.print(f"agent  {span['name']:<20} {int(span['durationUs']) / 1e3:>9.1f} ms")
        services = ", ".join(sorted({span["service"] for span in spans}))
        events = demo.ask("events", "list", "--limit", "100000", show=False)
    summarise(
        demo,
        {
            "run": run["name"],
            "final accuracy": f"{run['accuracy']:.4f}",
            "model version": f"digits:{version}",
            "endpoint": f"{status['gateway_url']}{endpoint['path']}/score (deployment {deployment})",
            **results,
            "journal events": str(len(events)),
            "trace": f"{run['traceId']}: {len(spans)} spans of {services}",
        },
    )
    if run["accuracy"] <= GOAL_ACCURACY:
        raise DemoError(f"the accuracy {run['accuracy']:.4f} is not above {GOAL_ACCURACY}")


def main() -> int:
    """0 when everything worked; the stack is stopped in any case."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    demo = Demo()
    FILES.mkdir(parents=True, exist_ok=True)
    lock = os.open(FILES / "lock", os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        console.print("[red]A demo runs in this checkout already:[/red] wait for it, or stop it with Ctrl-C.")
        return 1
    try:
        main_job(demo)
    except (DemoError, httpx.HTTPError, grpc.RpcError) as error:
        console.print(f"[red]The demo failed:[/red] {error}. Logs: {DATA_DIR / 'logs'}")
        return 1
    except KeyboardInterrupt:
        console.print("\nStopped.")
        return 130
    finally:
        # A second Ctrl-C must not leave processes behind.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        subprocess.run([STELLWERK, "down"], env=demo.environment, check=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
