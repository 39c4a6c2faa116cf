"""A script logs a known series while processes of the platform are killed at random points.

One round is one run, during which each of `runs`, NATS, MongoDB, S3, the agent and the gateway is killed with
SIGKILL once, in random order and with random pauses, without waiting for the last victim to be back. What is
stored then equals the script's own record. `make faults ROUNDS=50` does it fifty times; FAULTS_SEED repeats
the kills of an earlier call.
"""

import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import stellwerk
from stellwerk_launcher.testing import StackProcess
from stellwerk_protos.runs.v1 import metrics_pb2, metrics_pb2_grpc

SCRIPT = Path(__file__).with_name("known_series.py")
VICTIMS = ("runs", "nats", "mongod", "versitygw", "agent", "gateway")
ROUNDS = int(os.environ.get("ROUNDS") or 3)
SEED = int(os.environ.get("FAULTS_SEED") or random.SystemRandom().randrange(1 << 32))
LONGEST_PAUSE_SECONDS = 1.0


class KnownSeries:
    """A run of known_series.py."""

    def __init__(self, workspace: stellwerk.Workspace, folder: Path) -> None:
        self.folder = folder
        code = folder / "code"
        code.mkdir()
        (code / "known_series.py").write_text(SCRIPT.read_text())
        self.run = workspace.runs.submit(
            "python known_series.py",
            code=code,
            experiment="random-kills",
            variables={"RECORDER_DIR": str(folder)},
        )

    def steps(self) -> int:
        """How many steps the script knows to have done."""
        path = self.folder / "record"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def check_whole(self) -> None:
        """Series, records, logs and outputs are exactly what the script did."""
        assert self.run.state == "Completed", self.run
        count = self.steps()
        for metric, factor in (("series", 0.5), ("twice", 1.0)):
            history = self.run.history(metric)
            assert [point.step for point in history] == list(range(count))
            assert [point.value for point in history] == [step * factor for step in range(count)]
        assert self.records() == [(step, {"square": step * step}) for step in range(count)]
        printed = "".join(f"step {step}\r\x1b[1mpart\x1b[0m\n" for step in range(count))
        assert self.log("user_logs/std_log.txt") == printed
        assert self.log("logs/train.log") == "".join(f"trained {step}\n" for step in range(count))
        self.run.download(self.folder / "downloaded", path="outputs")
        outputs = {path.name: path.read_text() for path in (self.folder / "downloaded" / "outputs").iterdir()}
        expected = {f"part-{step}.txt": f"part {step}\n" for step in range(0, count, 50)}
        assert outputs == expected | {"growing.txt": "".join(f"grown {step}\n" for step in range(count))}

    def log(self, name: str) -> str:
        """A whole log."""
        return "".join(self.run.log(log=name))

    def records(self) -> list[tuple[int, object]]:
        """Step and value of each row."""
        core = self.run._core
        stub = metrics_pb2_grpc.MetricServiceStub(core.channel)
        request = metrics_pb2.ListRecordsRequest(parent=self.run.name, record="table", page_size=1000)
        pages = core.pages(stub.ListRecords, request)
        return [(record.step, json.loads(record.value)) for page in pages for record in page.records]


@pytest.fixture
def series(workspace: stellwerk.Workspace, tmp_path: Path) -> Iterator[KnownSeries]:
    series = KnownSeries(workspace, tmp_path)
    yield series
    (tmp_path / "stop").touch()


def kill(stack: StackProcess, name: str) -> int:
    """Kills a process, once it lives."""
    stack.wait_for(lambda: stack.process(name)["pid"] is not None)
    return stack.kill(name)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("round_", range(ROUNDS))
def test_whatever_is_killed_whenever_all_is_stored(
    breakable: StackProcess, series: KnownSeries, round_: int
) -> None:
    chance = random.Random(SEED + round_)
    print(f"FAULTS_SEED={SEED}")
    breakable.wait_for(lambda: series.steps() > 0, 240)
    killed = {}
    for name in chance.sample(VICTIMS, len(VICTIMS)):
        # The moment is what is random here; nothing is waited for.
        time.sleep(chance.uniform(0, LONGEST_PAUSE_SECONDS))
        killed[name] = kill(breakable, name)
    # One time in three the script ends while the platform is still away.
    if chance.random() < 1 / 3:
        (series.folder / "stop").touch()
    for name, pid in killed.items():
        breakable.wait_until_back(name, pid)
    (series.folder / "stop").touch()
    series.run.wait()
    series.check_whole()
