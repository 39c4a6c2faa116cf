"""Logs and metrics over a connection that breaks whenever it can."""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from stellwerk import wal
from stellwerk.shipping import MetricFolder
from stellwerk_agent import ingest
from stellwerk_agent.failure import StepFailed
from stellwerk_agent.ingest import Shipper
from stellwerk_agent.logs import LogFolder
from stellwerk_protos.runs.v1 import ingest_pb2, ingest_pb2_grpc

RUN = "workspaces/demo/runs/r"


class FlakyIngest(ingest_pb2_grpc.IngestServiceServicer):
    """Stands for `runs`: the real one cannot be told to break between storing and acknowledging."""

    def __init__(self) -> None:
        self.log = bytearray()
        self.points: dict[int, int] = {}
        self.code = grpc.StatusCode.UNAVAILABLE
        self.breaks = 0.3
        self.random = random.Random(1)

    async def Append(
        self, request_iterator: AsyncIterator[ingest_pb2.AppendRequest], context: Any
    ) -> AsyncIterator[ingest_pb2.AppendResponse]:
        async for request in request_iterator:
            if self.random.random() < self.breaks:
                await context.abort(self.code, "as the test wants it")
            self._store(request)
            if self.random.random() < self.breaks:
                await context.abort(self.code, "stored and not acknowledged")
            yield ingest_pb2.AppendResponse(batch=request.batch)

    def _store(self, request: ingest_pb2.AppendRequest) -> None:
        if request.HasField("log"):
            assert request.log.offset <= len(self.log), "no gap"
            self.log[request.log.offset :] = request.log.data
        for column in request.metrics.columns:
            for i in range(len(column.steps) // 8):
                step = int.from_bytes(column.steps[i * 8 : i * 8 + 8], "little")
                assert self.points.setdefault(column.first_sequence + i, step) == step


@pytest_asyncio.fixture
async def service() -> AsyncIterator[tuple[FlakyIngest, "ingest_pb2_grpc.IngestServiceAsyncStub"]]:
    servicer, server = FlakyIngest(), grpc.aio.server()
    ingest_pb2_grpc.add_IngestServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield servicer, ingest_pb2_grpc.IngestServiceStub(channel)
    await server.stop(None)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "FIRST_DELAY_SECONDS", 0.01)
    monkeypatch.setattr(ingest, "LONGEST_DELAY_SECONDS", 0.02)


def shipper(stub: "ingest_pb2_grpc.IngestServiceAsyncStub", folder: Path) -> Shipper:
    logs = LogFolder(folder, folder / "work", folder / "state")
    return Shipper(stub, RUN, logs, MetricFolder(folder))


async def test_nothing_is_lost_or_double_however_often_it_breaks_and_restarts(
    service: tuple[FlakyIngest, "ingest_pb2_grpc.IngestServiceAsyncStub"], tmp_path: Path
) -> None:
    servicer, stub = service
    writer = wal.Writer(tmp_path)
    log = tmp_path / "user_logs" / "std_log.txt"
    log.parent.mkdir()
    for round_ in range(5):
        with log.open("ab") as file:
            file.write(f"round {round_}\n".encode() * 1_000)
        for step in range(round_ * 100, round_ * 100 + 100):
            writer.append(step, [("loss", step, 0.5)])
        shipping = asyncio.create_task(shipper(stub, tmp_path).run())
        # Killed in the middle, as an agent is; the last one may finish.
        await asyncio.sleep(0.05)
        shipping.cancel()
        await asyncio.gather(shipping, return_exceptions=True)
    writer.close()
    last = shipper(stub, tmp_path)
    last.finish()
    await asyncio.wait_for(last.run(), 120)
    assert bytes(servicer.log) == log.read_bytes()
    assert servicer.points == {step: step for step in range(500)}


async def test_positions_that_cannot_be_written_lose_nothing(
    service: tuple[FlakyIngest, "ingest_pb2_grpc.IngestServiceAsyncStub"], tmp_path: Path
) -> None:
    servicer, stub = service
    log = tmp_path / "user_logs" / "std_log.txt"
    log.parent.mkdir()
    log.write_bytes(b"line\n" * 1_000)
    last = shipper(stub, tmp_path)
    (file,) = last._logs.due(now=True)
    # Stands for a full disk: no file can be written there.
    file._position_path.with_name(file._position_path.name + ".new").mkdir()
    last.finish()
    await asyncio.wait_for(last.run(), 120)
    assert bytes(servicer.log) == log.read_bytes()


async def test_a_file_that_cannot_be_read_ends_with_a_reason_and_not_never(
    service: tuple[FlakyIngest, "ingest_pb2_grpc.IngestServiceAsyncStub"],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, stub = service
    log = tmp_path / "user_logs" / "std_log.txt"
    log.parent.mkdir()
    log.write_text("hello\n")
    unreadable = shipper(stub, tmp_path)
    (file,) = unreadable._logs.due(now=True)

    def peek() -> None:
        raise PermissionError(f"{log} is closed")

    monkeypatch.setattr(file, "peek", peek)
    unreadable.finish()
    with pytest.raises(StepFailed) as caught:
        await asyncio.wait_for(unreadable.run(), 120)
    assert caught.value.reason.code == "OUTPUT_COLLECTION_FAILED"
    assert "std_log.txt" in caught.value.reason.message


async def test_what_is_refused_for_good_ends_with_a_reason(
    service: tuple[FlakyIngest, "ingest_pb2_grpc.IngestServiceAsyncStub"], tmp_path: Path
) -> None:
    servicer, stub = service
    servicer.code, servicer.breaks = grpc.StatusCode.NOT_FOUND, 1.0
    (tmp_path / "user_logs").mkdir()
    (tmp_path / "user_logs/std_log.txt").write_text("hello\n")
    refused = shipper(stub, tmp_path)
    refused.finish()
    with pytest.raises(StepFailed) as caught:
        await asyncio.wait_for(refused.run(), 120)
    assert caught.value.reason.code == "OUTPUT_COLLECTION_FAILED"


async def test_lines_that_come_one_by_one_travel_together(
    service: tuple[FlakyIngest, "ingest_pb2_grpc.IngestServiceAsyncStub"], tmp_path: Path
) -> None:
    servicer, stub = service
    servicer.breaks = 0.0
    log = tmp_path / "user_logs" / "std_log.txt"
    log.parent.mkdir()
    following, began = shipper(stub, tmp_path), asyncio.get_running_loop().time()
    shipping = asyncio.create_task(following.run())
    for _ in range(200):
        with log.open("ab") as file:
            file.write(b"line\n")
        await asyncio.sleep(0.002)
    following.finish()
    await asyncio.wait_for(shipping, 120)
    assert bytes(servicer.log) == log.read_bytes()
    seconds = asyncio.get_running_loop().time() - began
    assert following._batch <= seconds / ingest._POLL_SECONDS + 2
