"""What works on a batch job dies, one after another: the results are whole, in order, and nothing twice."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import stellwerk
from stellwerk_launcher.testing import StackProcess
from tests.faults.processes import scorers

FILES = 300
SCRIPT = """
import time
from pathlib import Path

def init():
    pass

def run(mini_batch):
    time.sleep(0.3)
    return [Path(path).read_text() for path in mini_batch]
"""


@pytest.fixture(scope="module")
def endpoint(workspace: stellwerk.Workspace, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A batch endpoint with two replicas, and something to score."""
    folder = tmp_path_factory.mktemp("batch")
    for name in ("code", "pages"):
        (folder / name).mkdir()
    (folder / "code" / "score.py").write_text(SCRIPT)
    (folder / "model.txt").write_text("none")
    for number in range(FILES):
        (folder / "pages" / f"{number:03}").write_text(f"page {number}")
    workspace.environments.create_version("bare", packages=[])
    workspace.models.register("none", path=folder / "model.txt")
    workspace.datasets.create_version("pages", folder / "pages")
    workspace.endpoints.create("reader", batch=True)
    workspace.deployments.create(
        *("blue",),
        endpoint="reader",
        models=["none:1"],
        environment="bare",
        code=folder / "code",
        script="score.py",
        replicas=2,
        batch={"mini_batch_size": 3, "max_retries": 10, "output_file_name": "rows.jsonl"},
    )
    last = list(workspace.deployments.watch("reader", "blue"))[-1]
    assert last.ready_replica_count == 2, last.reason
    return "reader"


def more(job: stellwerk.BatchJob, count: int, timeout_seconds: float = 240) -> None:
    """Returns when so many more mini-batches are done."""
    target = job.refresh().progress.succeeded_mini_batch_count + count
    deadline = time.monotonic() + timeout_seconds
    while job.refresh().progress.succeeded_mini_batch_count < target:
        assert time.monotonic() < deadline, job.message
        time.sleep(0.1)


def kill_worker(stack: StackProcess) -> None:
    """The process with the user's code, of one of the replicas."""
    os.kill(scorers(stack.data_dir)[0].children()[0].pid, signal.SIGKILL)


def kill_scorer(stack: StackProcess) -> None:
    """One of the replicas."""
    os.kill(scorers(stack.data_dir)[0].pid, signal.SIGKILL)


def service(name: str) -> Callable[[StackProcess], None]:
    """Kills a process of the platform and returns when there is another one."""

    def kill(stack: StackProcess) -> None:
        stack.wait_until_back(name, stack.kill(name))

    return kill


@pytest.mark.timeout(900)
def test_a_job_is_whole_whatever_dies_meanwhile(
    breakable: StackProcess, workspace: stellwerk.Workspace, endpoint: str, tmp_path: Path
) -> None:
    job = workspace.batches.submit(endpoint, "pages:1", name="first")
    for kill in (
        *(kill_worker, service("agent"), service("inference"), kill_scorer),
        *(service("gateway"), service("mongod"), service("registry")),
    ):
        more(job, 5)
        kill(breakable)
    check_whole(job, FILES, tmp_path)


def check_whole(job: stellwerk.BatchJob, count: int, folder: Path) -> None:
    """Waits for the end: each of the first so many pages is in the results once, in order."""
    assert job.wait().state == "Completed", job.message
    progress = job.progress
    assert (progress.succeeded_file_count, progress.failed_file_count) == (count, 0)
    assert (progress.succeeded_mini_batch_count, progress.row_count) == (-(-count // 3), count)
    job.download(folder)
    lines = (folder / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line)["prediction"] for line in lines] == [f"page {number}" for number in range(count)]


@pytest.mark.timeout(400)
def test_a_job_goes_on_when_the_stack_is_up_again(
    breakable: StackProcess, workspace: stellwerk.Workspace, endpoint: str, tmp_path: Path
) -> None:
    job = workspace.batches.submit(endpoint, "pages:1", path="0", name="interrupted")
    more(job, 5)
    assert breakable.stop() == 0
    breakable.start()
    assert not job.refresh().is_over
    check_whole(job, 100, tmp_path)
    # To be taken down is no failure of the script, which would cost one of its tries.
    assert [item.reason for item in job.mini_batches() if item.reason.code] == []


@pytest.mark.timeout(600)
def test_results_are_registered_once_when_the_service_dies_at_the_end(
    breakable: StackProcess, workspace: stellwerk.Workspace, endpoint: str
) -> None:
    job = workspace.batches.submit(endpoint, "pages:1", path="00", output_dataset="once")
    for now in job.watch():
        if now.state in ("Finalizing", "Completed"):
            break
    service("inference")(breakable)
    assert job.wait().state == "Completed", job.message
    assert [version.name for version in workspace.datasets.list("once")] == [job.message.output]
