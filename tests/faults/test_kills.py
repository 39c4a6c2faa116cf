"""Every process of the platform dies in the middle of a run, one after another, and nothing is lost."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import stellwerk
from stellwerk_launcher.testing import StackProcess

RECORDER = Path(__file__).with_name("recorder.py")
SERVERS = ("nats", "mongod", "openbao", "versitygw")
SERVICES = ("registry", "runs", "compute", "secrets", "inference", "telemetry", "gateway", "agent")
LOG = "user_logs/std_log.txt"


class Recording:
    """A run of recorder.py."""

    def __init__(self, workspace: stellwerk.Workspace, folder: Path) -> None:
        self.folder = folder
        code = folder / "code"
        code.mkdir()
        (code / "recorder.py").write_text(RECORDER.read_text())
        self.run = workspace.runs.submit(
            "python recorder.py", code=code, packages=[], variables={"RECORDER_DIR": str(folder)}
        )

    def lines(self) -> list[str]:
        """What the script knows to have done."""
        path = self.folder / "record"
        return path.read_text().splitlines() if path.exists() else []

    def wait_for_lines(self, count: int, timeout_seconds: float = 180.0) -> None:
        """Returns when the script has done that many more steps."""
        target = len(self.lines()) + count
        deadline = threading.Event()
        timer = threading.Timer(timeout_seconds, deadline.set)
        timer.start()
        while len(self.lines()) < target:
            assert not deadline.is_set(), f"the script stands still at {len(self.lines())} steps"
            deadline.wait(0.05)
        timer.cancel()

    def finish(self) -> None:
        """Lets the script end and waits for the run to."""
        (self.folder / "stop").touch()
        self.run.wait()

    def check_whole(self) -> None:
        """The stored series, log and output are exactly the script's own record."""
        lines = self.lines()
        assert self.run.state == "Completed", self.run
        for metric, factor in (("series", 0.5), ("twice", 1.0)):
            history = self.run.history(metric)
            assert [point.step for point in history] == list(range(len(lines)))
            assert [point.value for point in history] == [step * factor for step in range(len(lines))]
            summary = next(item for item in self.run.metrics() if item.metric == metric)
            assert summary.count == len(lines)
        assert "".join(self.run.log(log=LOG)).splitlines() == lines
        target = self.folder / "downloaded"
        self.run.download(target, path="outputs")
        assert (target / "outputs" / "record.txt").read_text().splitlines() == lines


def check_journal(workspace: stellwerk.Workspace, client: stellwerk.Client) -> None:
    """Every resource's revisions are there once and in order, and no consumer gave up."""
    revisions: dict[str, list[int]] = {}
    for event in workspace.events.list():
        body = json.loads(event.cloud_event)
        revisions.setdefault(body["subject"], []).append(body["data"]["revision"])
    assert revisions
    for resource, numbers in revisions.items():
        assert numbers == list(range(1, len(numbers) + 1)), resource
    assert not client.dead_letters()


@pytest.fixture
def recording(workspace: stellwerk.Workspace, tmp_path: Path) -> Iterator[Recording]:
    recording = Recording(workspace, tmp_path)
    yield recording
    (tmp_path / "stop").touch()


@pytest.mark.timeout(1200)
def test_any_process_may_die_in_the_middle_of_a_run(
    breakable: StackProcess, client: stellwerk.Client, workspace: stellwerk.Workspace, recording: Recording
) -> None:
    recording.wait_for_lines(50)
    for name in (*SERVICES, *SERVERS):
        old = breakable.kill(name)
        # The script neither waits nor notices.
        recording.wait_for_lines(20)
        breakable.wait_until_back(name, old)
    recording.finish()
    recording.check_whole()
    check_journal(workspace, client)


@pytest.mark.timeout(600)
def test_a_service_that_hangs_does_not_slow_the_script(breakable: StackProcess, recording: Recording) -> None:
    recording.wait_for_lines(50)
    pid = int(breakable.process("runs")["pid"])
    os.kill(pid, signal.SIGSTOP)
    try:
        recording.wait_for_lines(300)
    finally:
        os.kill(pid, signal.SIGCONT)
    recording.finish()
    recording.check_whole()


@pytest.mark.timeout(600)
def test_a_silent_node_shows_within_a_lease_and_its_run_goes_on(
    breakable: StackProcess, recording: Recording
) -> None:
    recording.wait_for_lines(20)
    pid = int(breakable.process("agent")["pid"])
    os.kill(pid, signal.SIGSTOP)
    try:
        seen = []
        for run in recording.run.watch():
            seen.append(run.state)
            if run.state == "NotResponding":
                break
        assert seen[-1] == "NotResponding"
        recording.wait_for_lines(20)
    finally:
        os.kill(pid, signal.SIGCONT)
    for run in recording.run.watch():
        if run.state == "Running":
            break
    recording.finish()
    recording.check_whole()
