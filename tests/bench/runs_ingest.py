"""How many points a script can log and have stored, and how soon a watcher sees them.

Both go the whole way of a training on a compute: the script's own write-ahead file, the
agent that ships it, gRPC through the gateway, JetStream, and the writer into MongoDB.
"""

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pymongo

import stellwerk
from stellwerk.points import unpack
from stellwerk_platform.auth import StaticCredentials
from stellwerk_platform.grpc_client import connect
from stellwerk_protos.runs.v1 import metrics_pb2, metrics_pb2_grpc
from tests.bench.mlflow_peer import NAME, MlflowPeer
from tests.bench.resources import Resources
from tests.bench.suite import Measurement, benchmark, percentile

SECONDS = 60.0
# A little more than the goal, so that what is measured is the platform and not the pace.
PACE = 330_000
WATCH_SECONDS = 10.0
WATCH_PACE = 10_000
METRICS = 100
_LONGEST_SECONDS = 600.0
_ITEM_BYTES = 8
SCRIPT = f"""
import os, time
import stellwerk

run, pace, seconds = stellwerk.current_run(), float(os.environ["PACE"]), float(os.environ["SECONDS"])
points = dict.fromkeys([f"metric-{{n}}" for n in range({METRICS})], 0.5)
began, logged = time.time(), 0
while (elapsed := time.time() - began) < seconds:
    if logged > pace * elapsed:
        time.sleep(logged / pace - elapsed)
    run.log_metrics(points)
    logged += {METRICS}
with open(os.environ["REPORT"] + ".new", "w") as file:
    file.write(f"{{began}} {{time.time()}} {{logged}}")
os.rename(os.environ["REPORT"] + ".new", os.environ["REPORT"])
"""


@dataclass(frozen=True)
class Logged:
    """What the script says: seconds since 1970, and points."""

    began: float
    ended: float
    points: int


class Logging:
    """A run of the script."""

    def __init__(self, workspace: stellwerk.Workspace, folder: Path, pace: float, seconds: float) -> None:
        code = folder / "code"
        code.mkdir(exist_ok=True)
        (code / "log.py").write_text(SCRIPT)
        self._report = folder / f"report-{time.time_ns()}"
        variables = {"PACE": str(pace), "SECONDS": str(seconds), "REPORT": str(self._report)}
        self.run = workspace.runs.submit("python log.py", code=code, packages=[], variables=variables)
        next(run for run in self.run.watch() if run.state not in ("Starting", "Queued", "Preparing"))

    def report(self) -> Logged | None:
        """None while the script still logs."""
        if not self._report.exists():
            return None
        began, ended, points = self._report.read_text().split()
        return Logged(float(began), float(ended), int(points))


@contextmanager
def opened(resources: Resources, name: str) -> Iterator[stellwerk.Workspace]:
    """A new workspace of the stack."""
    status = resources.stack.status()
    with stellwerk.Client(
        grpc_address=status["grpc_address"], gateway_url=status["gateway_url"], api_key=_key(resources)
    ) as client:
        client.workspaces.create(name)
        yield client.workspace(name)


def _key(resources: Resources) -> str:
    return Path(resources.stack.status()["owner_key_file"]).read_text().strip()


@benchmark("runs.metrics.ingest", unit="points/s", better="higher", goal=300_000, peer=f"{NAME}, log-batch")
def ingest(resources: Resources) -> Measurement:
    """Points in MongoDB over the seconds from the first call of the script until the last one lies there."""
    with opened(resources, "ingest") as workspace, MlflowPeer() as peer:
        database: Any = pymongo.MongoClient(resources.stack.status()["mongodb_uri"])["stellwerk_runs"]
        # Once for the environment and the first pages of everything.
        warm = Logging(workspace, resources.folder(), 10_000, 1.0)
        warm.run.wait()
        before = peer.log_rate()
        logging = Logging(workspace, resources.folder(), PACE, SECONDS)
        memory = Memory(int(resources.stack.process("runs")["pid"]))
        logged, ended = _until_stored(database, logging, memory)
        stored = _in_chunks(database, logging.run.name)
        if stored != logged.points:
            raise RuntimeError(f"{stored:,} of {logged.points:,} points are stored")
        after = peer.log_rate()
        database.client.close()
    seconds, logging_seconds = ended - logged.began, logged.ended - logged.began
    print(
        f"  {stored:,} points logged in {logging_seconds:.1f} s and stored after {seconds:.1f} s; "
        f"memory of runs: {memory.text()}; load average {os.getloadavg()[0]:.1f}"
    )
    return Measurement(stored / seconds, 1, (before + after) / 2)


def _until_stored(database: Any, logging: Logging, memory: "Memory") -> tuple[Logged, float]:
    """What was logged, and when the last point was in MongoDB."""
    deadline = time.monotonic() + _LONGEST_SECONDS
    while time.monotonic() < deadline:
        logged = logging.report()
        memory.sample()
        if logged is not None and _in_summaries(database, logging.run.name) == logged.points:
            return logged, time.time()
        time.sleep(1.0 if logged is None else 0.2)
    raise RuntimeError("the points were not stored in time")


def _in_summaries(database: Any, run: str) -> int:
    found = database["metric_series"].find({"_id": {"$gt": f"{run}#", "$lt": f"{run}$"}}, {"count": 1})
    return sum(int(document["count"]) for document in found if not _is_system(document["_id"]))


def _in_chunks(database: Any, run: str) -> int:
    """Every point that lies there, one by one."""
    found = database["metric_chunks"].aggregate(
        [
            {"$match": {"_id": {"$gt": f"{run}#", "$lt": f"{run}$"}}},
            {"$project": {"bytes": {"$binarySize": "$values"}}},
        ]
    )
    return sum(int(item["bytes"]) for item in found if not _is_system(item["_id"])) // _ITEM_BYTES


def _is_system(key: str) -> bool:
    """Whether the agent measured it, and not the script."""
    return not key.partition("#")[2].startswith("metric-")


class Memory:
    """Resident memory of a process over time."""

    def __init__(self, pid: int) -> None:
        self._path = Path(f"/proc/{pid}/status")
        self._samples: list[tuple[float, int]] = []

    def sample(self) -> None:
        """Takes one."""
        line = next(line for line in self._path.read_text().splitlines() if line.startswith("VmRSS"))
        self._samples.append((time.monotonic(), int(line.split()[1]) // 1024))

    def text(self) -> str:
        """At a sixth of the time, in the middle, at the end, and at most."""
        sizes = [size for _, size in self._samples]
        early, middle = sizes[len(sizes) // 6], sizes[len(sizes) // 2]
        return f"{early} MiB, later {middle}, at the end {sizes[-1]}, at most {max(sizes)}"


@benchmark("runs.metrics.watch_delay", unit="ms (p99)", better="lower", goal=250)
async def watch_delay(resources: Resources) -> Measurement:
    """From the call in the script to the watching client, at 10,000 points a second."""
    address, credentials = resources.stack.status()["grpc_address"], StaticCredentials(_key(resources))
    with opened(resources, "watched") as workspace:
        logging = await asyncio.to_thread(Logging, workspace, resources.folder(), WATCH_PACE, WATCH_SECONDS)
        # What was logged before the watch began is no delay of the watch.
        begin_ms = time.time() * 1e3 + 1_000
        delays: list[float] = []
        async with connect(address, credentials) as channel:
            stub = metrics_pb2_grpc.MetricServiceStub(channel)
            async for answer in stub.WatchMetrics(metrics_pb2.WatchMetricsRequest(parent=logging.run.name)):
                now_ms = time.time() * 1e3
                for columns in answer.columns:
                    if columns.metric.startswith("metric-"):
                        times = (point.time_ms for point in unpack(columns))
                        delays += [now_ms - moment for moment in times if moment > begin_ms]
    half, load = percentile(delays, 50), os.getloadavg()[0]
    print(f"  {len(delays):,} points; p50 {half:.0f} ms; load average {load:.1f}")
    return Measurement(percentile(delays, 99), len(delays))
