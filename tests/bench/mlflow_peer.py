"""The peer of the benchmarks of runs: a `mlflow server` on SQLite, on this machine, over its REST API.

It lives in a virtual environment of its own under the user's cache folder, which is made
when it is missing (that needs a package index, once). The requests are made with `httpx`
on a kept connection, which is faster than the peer's own client.
"""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from stellwerk_launcher import ports
from stellwerk_launcher.tied import tied_to_parent

VERSION = "3.17.2"
NAME = f"mlflow {VERSION} on SQLite"
# Its first start compiles some thousand modules.
_START_SECONDS = 300.0
_BATCH = 1_000
_TABLES = ("runs", "metrics", "latest_metrics", "params", "tags")


class MlflowPeer:
    """A server with an empty store; the `with` block starts it and ends it."""

    def __enter__(self) -> "MlflowPeer":
        self._folder = Path(tempfile.mkdtemp(prefix="stellwerk-bench-mlflow-"))
        self._database = self._folder / "mlflow.db"
        port = ports.choose(["mlflow"], {})["mlflow"]
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120)
        command = [
            str(_environment() / "bin" / "mlflow"),
            *("server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{self._database}"),
            *("--artifacts-destination", str(self._folder / "artifacts")),
        ]
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                tied_to_parent(command),
                env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait()
            created = self._post("experiments/create", {"name": "bench"})
        except BaseException:
            self.__exit__(None, None, None)
            raise
        self._experiment = str(created["experiment_id"])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()
        # Its workers are children in the session that it was given.
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._process.poll() is None:
                os.killpg(self._process.pid, number)
                try:
                    self._process.wait(10)
                except subprocess.TimeoutExpired:
                    continue
        shutil.rmtree(self._folder, ignore_errors=True)

    def _wait(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RuntimeError((self._folder / "log").read_text()[-2000:])
            try:
                if self._http.get("/health").is_success:
                    return
            except httpx.TransportError:
                time.sleep(0.2)
        raise RuntimeError("the mlflow server did not start")

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        response = self._http.post(f"/api/2.0/mlflow/{path}", json=body)
        response.raise_for_status()
        return response.json()

    def create_run(self) -> str:
        """A new run's id."""
        body = {"experiment_id": self._experiment, "start_time": _now_ms()}
        return str(self._post("runs/create", body)["run"]["info"]["run_id"])

    def log(self, run: str, metric: str, count: int) -> None:
        """Logs points of one metric, 1,000 a request: the most that it takes."""
        for first in range(0, count, _BATCH):
            points = [
                {"key": metric, "value": step * 0.5, "timestamp": _now_ms(), "step": step}
                for step in range(first, min(first + _BATCH, count))
            ]
            self._post("runs/log-batch", {"run_id": run, "metrics": points})

    def log_rate(self, seconds: float = 5.0) -> float:
        """Points a second by log-batch from one process, 100 metrics a run."""
        run, logged = self.create_run(), 0
        began = time.perf_counter()
        while (elapsed := time.perf_counter() - began) < seconds:
            points = [
                {"key": f"m{i % 100}", "value": 0.5, "timestamp": _now_ms(), "step": logged + i}
                for i in range(_BATCH)
            ]
            self._post("runs/log-batch", {"run_id": run, "metrics": points})
            logged += _BATCH
        return logged / elapsed

    def fill(self, runs: int) -> None:
        """Has so many runs, each with a parameter and a metric `accuracy`; copied inside its database."""
        first = self.create_run()
        self._post("runs/log-parameter", {"run_id": first, "key": "model", "value": "mlp"})
        self.log(first, "accuracy", 1)
        with sqlite3.connect(self._database, timeout=60) as database:
            new = [(uuid.uuid4().hex, number) for number in range(1, runs)]
            for table in _TABLES:
                names = [row[1] for row in database.execute(f"pragma table_info({table})")]
                wanted = {
                    "run_uuid": "?1",
                    "value": "cast(?2 as float) / ?3",
                    "start_time": "start_time + ?2",
                }
                if table in ("params", "tags"):
                    del wanted["value"]
                shown = ", ".join(wanted.get(name, f'"{name}"') for name in names)
                # Every parameter has to be used.
                sql = f"insert into {table} select {shown} from {table} where run_uuid = ?4 and ?2 < ?3"
                database.executemany(sql, [(run, number, float(runs), first) for run, number in new])
        database.close()

    def search_seconds(self) -> float:
        """One search with a filter and a sort on a metric, first page of 100."""
        body = {
            "experiment_ids": [self._experiment],
            "filter": "metrics.accuracy > 0.5 and params.model = 'mlp'",
            "order_by": ["metrics.accuracy DESC"],
            "max_results": 100,
        }
        began = time.perf_counter()
        found = self._post("runs/search", body)
        elapsed = time.perf_counter() - began
        if len(found["runs"]) != 100:
            raise RuntimeError("the search did not find what there is")
        return elapsed

    def history_seconds(self, run: str, metric: str, points: int) -> float:
        """Reads all points of a metric, by pages as its client does."""
        began, token, count = time.perf_counter(), "", 0
        while True:
            query: dict[str, str | int] = {"run_id": run, "metric_key": metric, "max_results": 25_000}
            response = self._http.get(
                "/api/2.0/mlflow/metrics/get-history",
                params={**query, **({"page_token": token} if token else {})},
            )
            response.raise_for_status()
            body = response.json()
            count += len(body["metrics"])
            token = body.get("next_page_token", "")
            if not token:
                break
        elapsed = time.perf_counter() - began
        if count != points:
            raise RuntimeError(f"{count} points of {points}")
        return elapsed


def search_p50(runs: int = 10_000, rounds: int = 5) -> float:
    """Milliseconds of a search with filter and sort among so many runs: the median."""
    with MlflowPeer() as peer:
        peer.fill(runs)
        peer.search_seconds()
        return sorted(peer.search_seconds() for _ in range(rounds))[rounds // 2] * 1e3


def history_p50(points: int = 100_000, rounds: int = 5) -> float:
    """Milliseconds to read all points of one metric: the median."""
    with MlflowPeer() as peer:
        run = peer.create_run()
        peer.log(run, "loss", points)
        return sorted(peer.history_seconds(run, "loss", points) for _ in range(rounds))[rounds // 2] * 1e3


def _environment() -> Path:
    """The virtual environment with the peer; made when it is missing."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "stellwerk" / f"mlflow-{VERSION}"
    if (folder / "bin" / "mlflow").exists():
        return folder
    uv = Path(sys.executable).with_name("uv")
    found = str(uv) if uv.exists() else shutil.which("uv")
    if found is None:
        raise RuntimeError("uv is needed to fetch the peer")
    folder.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([found, "venv", "--quiet", "--clear", str(folder)], check=True)
    install = [found, "pip", "install", "--quiet", "--python", str(folder / "bin" / "python")]
    subprocess.run([*install, f"mlflow=={VERSION}"], check=True)
    return folder


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
