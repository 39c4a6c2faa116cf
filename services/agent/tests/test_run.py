"""Scripts as users write them, on a real agent before real services: limits, cancels, logs, what is used."""

import asyncio
import signal
from collections.abc import AsyncIterator, Mapping

import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration

from services.agent.tests.support import Node, running
from services.runs.tests.support import submit, values
from stellwerk_agent import processes
from stellwerk_launcher.testing import Servers
from stellwerk_protos.runs.v1 import artifacts_pb2, logs_pb2, metrics_pb2, runs_pb2, snapshots_pb2

STD_LOG = "user_logs/std_log.txt"
# Its child forks twice and begins a session of its own: it has no parent here, no group and no terminal.
HIDING = b"""
import os, pathlib, signal, sys, time
from stellwerk.run_context import current_run

run = current_run()
run.outputs

def save(number, frame):
    run.log("saved", 1)
    print("saving", flush=True)
    pathlib.Path("outputs/checkpoint").write_text("weights")
    sys.exit(0)

signal.signal(signal.SIGTERM, save)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(1)
    os._exit(0)
print("started", flush=True)
while True:
    time.sleep(1)
"""
WRITING = b"""
import pathlib, time
pathlib.Path("logs").mkdir()
pathlib.Path("logs/train.log").write_bytes(b"epoch 1\\r 50%\\r100%\\n")
pathlib.Path("user_logs").mkdir()
pathlib.Path("user_logs/std_log_1.txt").write_text("rank 1\\n")
pathlib.Path("outputs").mkdir()
pathlib.Path("outputs/early").write_text("early")
while not pathlib.Path("outputs/stop").exists():
    time.sleep(0.05)
sum(range(3_000_000))
time.sleep(0.3)
"""


@pytest_asyncio.fixture(scope="module")
async def node(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    async with running(servers, tmp_path_factory.mktemp("node")) as node, node.agent():
        yield node


async def start(node: Node, command: str, code: Mapping[str, bytes] = {}, **fields: object) -> str:
    """Submits a command with its files and returns the run's name."""
    workspace = await node.platform.workspace()
    if code:
        files = [await node.platform.upload(workspace, path, content) for path, content in code.items()]
        snapshot = await node.platform.client.snapshots.CreateSnapshot(
            snapshots_pb2.CreateSnapshotRequest(parent=workspace, files=files)
        )
        fields["snapshot"] = snapshot.name
    run = await node.platform.client.runs.CreateRun(submit(workspace, command=command, **fields))
    return run.name


async def text(node: Node, run: str, log: str = STD_LOG, *, follow: bool = False) -> AsyncIterator[bytes]:
    request = logs_pb2.ReadLogRequest(parent=run, log=log, follow=follow)
    async for answer in node.platform.client.logs.ReadLog(request):
        yield answer.data


async def whole(node: Node, run: str, log: str = STD_LOG) -> bytes:
    return b"".join([part async for part in text(node, run, log)])


async def until_it_says(node: Node, run: str, word: bytes) -> None:
    said = b""
    async for part in text(node, run, follow=True):
        said += part
        if word in said:
            return
    raise AssertionError(said)


async def artifacts(node: Node, run: str) -> list[str]:
    request = artifacts_pb2.ListArtifactsRequest(parent=run)
    return [file.path for file in (await node.platform.client.artifacts.ListArtifacts(request)).files]


async def test_a_cancel_reaches_what_hides_and_the_grace_time_still_counts(node: Node) -> None:
    run = await start(node, "python train.py", {"train.py": HIDING}, grace=Duration(seconds=3))
    await until_it_says(node, run, b"started")
    (folder,) = (node.folder / "allocations").iterdir()
    assert len(await asyncio.to_thread(processes.of_allocation, folder, None)) >= 2
    await node.platform.client.runs.CancelRun(runs_pb2.CancelRunRequest(name=run, message="enough"))
    ended = await node.platform.until(run, runs_pb2.RUN_STATE_CANCELED)
    assert "enough" in ended.reason.message
    assert not await asyncio.to_thread(processes.of_allocation, folder, None)
    assert await whole(node, run) == b"started\nsaving\n"
    assert values(await node.platform.client.history(run, "saved")) == [1]
    assert await artifacts(node, run) == ["outputs/checkpoint"]


async def test_a_run_that_takes_too_long_is_ended_and_says_its_limit(node: Node) -> None:
    command = "trap 'echo saved; exit 0' TERM; echo up; while :; do sleep 0.05; done"
    run = await start(node, command, timeout=Duration(seconds=2), grace=Duration(seconds=30))
    ended = await node.platform.until(run, runs_pb2.RUN_STATE_FAILED)
    assert ended.reason.code == "RUN_TIMED_OUT"
    assert "2 s" in ended.reason.message
    assert ended.reason.cure
    said = await whole(node, run)
    assert said.startswith(b"up\n")
    assert said.endswith(b"saved\n")


async def test_logs_and_outputs_are_there_while_the_run_goes_on(node: Node) -> None:
    run = await start(node, "python train.py", {"train.py": WRITING})
    await node.platform.until(run, runs_pb2.RUN_STATE_RUNNING)
    (folder,) = (path for path in (node.folder / "allocations").iterdir() if path.name.startswith("w"))
    async with asyncio.timeout(60):
        while await artifacts(node, run) != ["outputs/early"]:  # noqa: ASYNC110  # nothing tells of them
            await asyncio.sleep(0.1)
    assert await whole(node, run, "logs/train.log") == b"epoch 1\r 50%\r100%\n"
    assert await whole(node, run, "user_logs/std_log_1.txt") == b"rank 1\n"
    (folder / "work/outputs/stop").write_text("")
    await node.platform.until(run, runs_pb2.RUN_STATE_COMPLETED)
    assert await artifacts(node, run) == ["outputs/early", "outputs/stop"]
    await check_standard_metrics(node, run)


async def check_standard_metrics(node: Node, run: str) -> None:
    """What the run used was measured while it ran and at its end."""
    answer = await node.platform.client.metrics.ListMetrics(metrics_pb2.ListMetricsRequest(parent=run))
    found = {summary.metric: summary for summary in answer.metrics}
    assert found["system/cpu_percent"].count >= 2
    assert found["system/cpu_percent"].max > 0
    assert found["system/memory_rss_bytes"].max > 1_000_000
    written = values(await node.platform.client.history(run, "system/disk_write_bytes"))
    assert written == sorted(written)
    assert {"system/disk_read_bytes", "system/network_received_bytes", "system/network_sent_bytes"} <= set(
        found
    )


async def test_a_standard_metric_of_a_short_command_is_there_too(node: Node) -> None:
    run = await start(node, "true")
    await node.platform.until(run, runs_pb2.RUN_STATE_COMPLETED)
    assert len(values(await node.platform.client.history(run, "system/cpu_percent"))) == 1


async def test_a_cancel_ends_the_collection_from_a_store_that_hangs(servers: Servers, node: Node) -> None:
    run = await start(node, "mkdir outputs; echo weights > outputs/model", grace=Duration(nanos=500_000_000))
    servers.process.kill("versitygw", signal.SIGSTOP)
    try:
        await node.platform.until(run, runs_pb2.RUN_STATE_FINALIZING)
        await node.platform.client.runs.CancelRun(runs_pb2.CancelRunRequest(name=run, message="enough"))
        ended = await node.platform.until(run, runs_pb2.RUN_STATE_CANCELED)
    finally:
        servers.process.kill("versitygw", signal.SIGCONT)
    assert "users/owner asked the run to stop: enough" in ended.reason.message
    assert "Not collected: outputs/model." in ended.reason.message
    assert ended.exit_code == 0
    assert not await artifacts(node, run)
