"""Interactive runs against a service that is slow, away, refuses, or asks to stop."""

import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from stellwerk import Client, InteractiveRun, RunCanceled, Workspace
from stellwerk_protos.runs.v1 import ingest_pb2, ingest_pb2_grpc, runs_pb2, runs_pb2_grpc

from .conftest import KEY, fail

# Much longer than what is waited for takes.
_PATIENCE_SECONDS = 60


class Service(runs_pb2_grpc.RunServiceServicer, ingest_pb2_grpc.IngestServiceServicer):
    """Takes what comes, unless it is told to stall or to break."""

    def __init__(self) -> None:
        self.points: dict[str, dict[int, float]] = {}
        self.records: dict[str, dict[int, str]] = {}
        self.finished: dict[str, runs_pb2.FinishRunRequest] = {}
        self.created = 0
        self.stalls = self.cancels = False
        self.breaks = 0
        self.over = threading.Event()

    def CreateRun(self, request: Any, context: Any) -> runs_pb2.Run:
        assert request.kind == runs_pb2.RUN_KIND_INTERACTIVE
        self.created += 1
        name = f"{request.parent}/runs/{request.run_id or f'run-{self.created}'}"
        return runs_pb2.Run(name=name, experiment=request.experiment, state=runs_pb2.RUN_STATE_RUNNING)

    def RenewRun(self, request: Any, context: Any) -> runs_pb2.RenewRunResponse:
        answer = runs_pb2.RenewRunResponse(cancel_requested=self.cancels)
        answer.lease_expire_time.FromSeconds(int(time.time()) + 30)
        return answer

    def FinishRun(self, request: Any, context: Any) -> runs_pb2.Run:
        self.finished[request.name] = request
        return runs_pb2.Run(name=request.name, state=request.state)

    def Append(self, requests: Iterator[Any], context: Any) -> Iterator[ingest_pb2.AppendResponse]:
        for request in requests:
            if self.stalls:
                self.over.wait()
            for column in request.metrics.columns:
                found = struct.unpack(f"<{len(column.values) // 8}d", column.values)
                points = self.points.setdefault(request.run + "/" + column.metric, {})
                points.update(enumerate(found, column.first_sequence))
            records = self.records.setdefault(request.run, {})
            for sequence, record in enumerate(request.records.records, request.records.first_sequence):
                records[sequence] = record.value
            if self.breaks:
                self.breaks -= 1
                fail(context, grpc.StatusCode.UNAVAILABLE, "NATS_UNAVAILABLE", "Away.", "Wait.")
            yield ingest_pb2.AppendResponse(batch=request.batch)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[], tuple[Service, Workspace]]]:
    closing: list[Callable[[], object]] = []

    def start() -> tuple[Service, Workspace]:
        pool, service = ThreadPoolExecutor(max_workers=8), Service()  # type: ignore[abstract]
        server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
        runs_pb2_grpc.add_RunServiceServicer_to_server(service, server)
        ingest_pb2_grpc.add_IngestServiceServicer_to_server(service, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        client = Client(grpc_address=f"127.0.0.1:{port}", api_key=KEY)
        closing.extend((pool.shutdown, lambda: server.stop(None).wait(), service.over.set, client.close))
        return service, client.workspace("demo")

    yield start
    for close in reversed(closing):
        close()


@pytest.fixture
def folders() -> Path:
    from stellwerk.interactive_folder import interactive_dir

    return interactive_dir()


def test_each_point_arrives_once_however_often_the_service_breaks(serve: Any, folders: Path) -> None:
    service, workspace = serve()
    service.breaks = 3
    with workspace.start_run(name="r") as run:
        for step in range(3_000):
            run.log("loss", float(step))
            if step % 1_000 == 0:
                run.set_tag("step", step)
    assert list(service.points["workspaces/demo/runs/r/loss"].values()) == [float(i) for i in range(3_000)]
    assert list(service.records[run.name].values()) == ["0", "1000", "2000"]
    assert service.finished[run.name].state == runs_pb2.RUN_STATE_COMPLETED
    assert list(folders.iterdir()) == []


def divide(run: InteractiveRun) -> None:
    """Logs and then fails."""
    run.log("loss", 1.0)
    run.log("loss", 1 / 0)


def test_the_end_waits_no_longer_than_it_may_and_the_next_run_delivers(
    serve: Any, folders: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    service, workspace = serve()
    service.stalls = True
    began = time.monotonic()
    run = workspace.start_run(name="slow", flush_seconds=0.3)
    with pytest.raises(ZeroDivisionError), run:
        divide(run)
    assert time.monotonic() - began < _PATIENCE_SECONDS
    err = capfd.readouterr().err
    assert err.count("stellwerk run ship") == 1
    assert str(folders / "slow") in err
    assert service.finished == {}
    service.stalls = False
    service.over.set()
    with workspace.start_run() as later:
        while run.name not in service.finished:
            assert time.monotonic() - began < 2 * _PATIENCE_SECONDS
            threading.Event().wait(0.02)
        later.log("loss", 2.0)
    assert service.points["workspaces/demo/runs/slow/loss"] == {0: 1.0}
    assert service.finished[run.name].state == runs_pb2.RUN_STATE_FAILED
    assert "ZeroDivisionError" in service.finished[run.name].reason.message
    assert list(folders.iterdir()) == []


@pytest.fixture
def pythons_own_handler() -> Iterator[None]:
    """What a script has that never touched signals, whatever earlier tests did in this process."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before or signal.default_int_handler)


@pytest.mark.usefixtures("pythons_own_handler")
@pytest.mark.parametrize("begins", [True, False])
def test_a_request_to_stop_interrupts_the_main_thread(
    serve: Any, monkeypatch: pytest.MonkeyPatch, begins: bool
) -> None:
    """Within the block, and also before it has begun."""
    service, workspace = serve()
    service.cancels = True
    run, start = workspace.start_run(), InteractiveRun.start

    def slow(run: InteractiveRun) -> InteractiveRun:
        start(run)
        threading.Event().wait(_PATIENCE_SECONDS)
        return run

    if not begins:
        monkeypatch.setattr(InteractiveRun, "start", slow)
    with pytest.raises(RunCanceled), run:
        threading.Event().wait(_PATIENCE_SECONDS)
    assert run.cancel_requested
    assert service.finished[run.name].state == runs_pb2.RUN_STATE_CANCELED


def test_without_a_block_a_run_is_ended_by_hand(serve: Any) -> None:
    service, workspace = serve()
    run = workspace.start_run().start()
    run.log("loss", 1.0)
    run.fail("no luck")
    run.complete()
    finished = service.finished[run.name]
    assert (finished.state, finished.reason.message) == (runs_pb2.RUN_STATE_FAILED, "no luck")


async def test_it_works_in_asynchronous_code_too(serve: Any) -> None:
    service, workspace = serve()
    async with workspace.start_run() as run:
        run.log("loss", 1.0)
    assert service.finished[run.name].state == runs_pb2.RUN_STATE_COMPLETED
