"""A tiny gRPC server that answers as the services do: for errors and the live view, not for behaviour.

It is a threaded server, so that the client's event loop is the only one of grpc.aio in the process.
"""

import dataclasses
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from stellwerk_protos.common.v1 import common_pb2
from stellwerk_protos.inference.v1 import batches_pb2, batches_pb2_grpc
from stellwerk_protos.registry.v1 import quotas_pb2, quotas_pb2_grpc, workspaces_pb2, workspaces_pb2_grpc
from stellwerk_protos.runs.v1 import (
    artifacts_pb2,
    artifacts_pb2_grpc,
    ingest_pb2,
    logs_pb2,
    logs_pb2_grpc,
    metrics_pb2,
    metrics_pb2_grpc,
    runs_pb2,
    runs_pb2_grpc,
)

KEY = "swk_test"


def fail(context: Any, code: grpc.StatusCode, reason: str, message: str, cure: str) -> None:
    """Ends a call as stellwerk_platform does: `google.rpc.Status` with `ErrorInfo`."""
    info = error_details_pb2.ErrorInfo(reason=reason, domain="stellwerk", metadata={"cure": cure})
    status = status_pb2.Status(code=code.value[0], message=message)
    status.details.add().Pack(info)
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(code, message)


@dataclasses.dataclass
class Workspaces(workspaces_pb2_grpc.WorkspaceServiceServicer):
    """Knows `demo`; the workspace `flaky` is unavailable twice."""

    failures: int = 2
    seen: list[dict[str, str]] = dataclasses.field(default_factory=list)
    created: set[str] = dataclasses.field(default_factory=set)

    def _check(self, context: Any) -> None:
        metadata = {key: str(value) for key, value in context.invocation_metadata()}
        self.seen.append(metadata)
        if metadata.get("authorization") != f"Bearer {KEY}":
            code = grpc.StatusCode.UNAUTHENTICATED
            fail(context, code, "KEY_INVALID", "The key or token is not valid.", "Check the key.")

    def GetWorkspace(self, request: Any, context: Any) -> workspaces_pb2.Workspace:
        self._check(context)
        if request.name.endswith("flaky") and self.failures:
            self.failures -= 1
            fail(context, grpc.StatusCode.UNAVAILABLE, "REGISTRY_UNAVAILABLE", "Registry is gone.", "Wait.")
        if request.name.endswith("crash"):
            context.abort(grpc.StatusCode.INTERNAL, "boom")
        if not request.name.endswith(("demo", "flaky")):
            code = grpc.StatusCode.NOT_FOUND
            fail(context, code, "WORKSPACE_NOT_FOUND", f"There is no {request.name}.", "List them.")
        return workspaces_pb2.Workspace(name=request.name, revision=1, tags={"a": "ü"})

    def CreateWorkspace(self, request: Any, context: Any) -> workspaces_pb2.Workspace:
        self._check(context)
        assert request.request_id
        if request.workspace_id in self.created:
            fail(context, grpc.StatusCode.ALREADY_EXISTS, "NAME_TAKEN", "It is taken.", "Use another one.")
        self.created.add(request.workspace_id)
        return workspaces_pb2.Workspace(name=f"workspaces/{request.workspace_id}", revision=1)

    def ListWorkspaces(self, request: Any, context: Any) -> workspaces_pb2.ListWorkspacesResponse:
        self._check(context)
        start = int(request.page_token or 0)
        page = [workspaces_pb2.Workspace(name=f"workspaces/w{n}") for n in range(start, start + 2)]
        return workspaces_pb2.ListWorkspacesResponse(
            workspaces=page, next_page_token=str(start + 2) if start < 4 else ""
        )


class Quotas(quotas_pb2_grpc.QuotaServiceServicer):
    """No limits."""

    def GetQuota(self, request: Any, context: Any) -> quotas_pb2.Quota:
        return quotas_pb2.Quota(name=request.name)

    def SetQuota(self, request: Any, context: Any) -> quotas_pb2.Quota:
        return quotas_pb2.Quota(name=request.quota.name)


class Runs(
    runs_pb2_grpc.RunServiceServicer,
    logs_pb2_grpc.LogServiceServicer,
    metrics_pb2_grpc.MetricServiceServicer,
    artifacts_pb2_grpc.ArtifactServiceServicer,
):
    """A run that logs and ends; the run `bad` ends in failure, the run `torn` breaks its streams once."""

    def __init__(self) -> None:
        self.broken: set[str] = set()

    def _run(self, name: str, revision: int, state: runs_pb2.RunState.ValueType) -> runs_pb2.Run:
        reason = common_pb2.Reason()
        if state == runs_pb2.RUN_STATE_FAILED:
            reason = common_pb2.Reason(code="COMMAND_FAILED", message="exit code 3", cure="See the log.")
        return runs_pb2.Run(name=name, revision=revision, state=state, reason=reason)

    def GetRun(self, request: Any, context: Any) -> runs_pb2.Run:
        return self._run(request.name, 1, runs_pb2.RUN_STATE_RUNNING)

    def WatchRun(self, request: Any, context: Any) -> Iterator[runs_pb2.Run]:
        yield self._run(request.name, 1, runs_pb2.RUN_STATE_RUNNING)
        self._tear(request.name, "watch", context)
        bad = request.name.endswith("bad")
        yield self._run(request.name, 2, runs_pb2.RUN_STATE_FAILED if bad else runs_pb2.RUN_STATE_COMPLETED)

    def ReadLog(self, request: Any, context: Any) -> Iterator[logs_pb2.ReadLogResponse]:
        text = "first ü\nsecond\nthird".encode()
        for offset in range(request.offset, len(text), 7):
            yield logs_pb2.ReadLogResponse(offset=offset, data=text[offset : offset + 7])
            self._tear(request.parent, "log", context)

    def WatchMetrics(self, request: Any, context: Any) -> Iterator[metrics_pb2.WatchMetricsResponse]:
        for step in range(int(request.cursor or 0), 3):
            columns = ingest_pb2.MetricColumns(
                metric="loss",
                steps=struct.pack("<q", step),
                times=struct.pack("<q", step),
                values=struct.pack("<d", 1 / (step + 1)),
            )
            yield metrics_pb2.WatchMetricsResponse(columns=[columns], cursor=str(step + 1))
            self._tear(request.parent, "metrics", context)

    def ListMetrics(self, request: Any, context: Any) -> metrics_pb2.ListMetricsResponse:
        return metrics_pb2.ListMetricsResponse(metrics=[metrics_pb2.MetricSummary(metric="loss", last=0.3)])

    def ListArtifacts(self, request: Any, context: Any) -> artifacts_pb2.ListArtifactsResponse:
        return artifacts_pb2.ListArtifactsResponse()

    def _tear(self, name: str, stream: str, context: Any) -> None:
        if name.endswith("torn") and stream not in self.broken:
            self.broken.add(stream)
            context.abort(grpc.StatusCode.UNAVAILABLE, "gone for a moment")


class Batches(batches_pb2_grpc.BatchServiceServicer):
    """Jobs of two mini-batches; the job `bad` fails, the job `torn` breaks its stream once."""

    def __init__(self) -> None:
        self.created: list[batches_pb2.CreateBatchJobRequest] = []
        self._is_torn = False

    def _job(self, name: str, revision: int, done: int) -> batches_pb2.BatchJob:
        job = batches_pb2.BatchJob(name=name, revision=revision, state=batches_pb2.BATCH_JOB_STATE_RUNNING)
        job.progress.mini_batch_count, job.progress.file_count = 2, 20
        job.progress.succeeded_mini_batch_count, job.progress.succeeded_file_count = done, 10 * done
        if done == 2:
            job.state, job.output = (
                batches_pb2.BATCH_JOB_STATE_COMPLETED,
                "workspaces/demo/datasets/r/versions/3",
            )
        return job

    def CreateBatchJob(self, request: Any, context: Any) -> batches_pb2.BatchJob:
        self.created.append(request)
        return self._job(f"{request.parent}/jobs/{request.job_id}", 1, 0)

    def GetBatchJob(self, request: Any, context: Any) -> batches_pb2.BatchJob:
        return self._job(request.name, 1, 0)

    def WatchBatchJob(self, request: Any, context: Any) -> Iterator[batches_pb2.BatchJob]:
        yield self._job(request.name, 2, 1)
        if request.name.endswith("torn") and not self._is_torn:
            self._is_torn = True
            context.abort(grpc.StatusCode.UNAVAILABLE, "gone for a moment")
        last = self._job(request.name, 3, 2)
        if request.name.endswith("bad"):
            last.state, last.output = batches_pb2.BATCH_JOB_STATE_FAILED, ""
            last.reason.code, last.reason.message, last.reason.cure = "NOTHING_SCORED", "All failed.", "Look."
        yield last


@dataclasses.dataclass(frozen=True)
class Platform:
    """The server and what it saw."""

    address: str
    workspaces: Workspaces
    batches: Batches
    key_file: Path

    def options(self) -> list[str]:
        """Common options of the command line."""
        return ["--grpc-address", self.address, "--api-key-file", str(self.key_file)]


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    with ThreadPoolExecutor(max_workers=8) as pool:
        server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
        workspaces, runs = Workspaces(), Runs()  # type: ignore[abstract]  # the rest answers UNIMPLEMENTED
        batches = Batches()  # type: ignore[abstract]
        batches_pb2_grpc.add_BatchServiceServicer_to_server(batches, server)
        workspaces_pb2_grpc.add_WorkspaceServiceServicer_to_server(workspaces, server)
        quotas_pb2_grpc.add_QuotaServiceServicer_to_server(Quotas(), server)
        runs_pb2_grpc.add_RunServiceServicer_to_server(runs, server)
        logs_pb2_grpc.add_LogServiceServicer_to_server(runs, server)
        metrics_pb2_grpc.add_MetricServiceServicer_to_server(runs, server)
        artifacts_pb2_grpc.add_ArtifactServiceServicer_to_server(runs, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        key_file = tmp_path / "test.key"
        key_file.write_text(KEY + "\n")
        yield Platform(f"127.0.0.1:{port}", workspaces, batches, key_file)
        server.stop(None).wait()


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No address, key or configuration of this machine reaches a test."""
    for variable in (
        *("STELLWERK_GRPC_ADDRESS", "STELLWERK_GATEWAY_URL", "STELLWERK_API_KEY", "STELLWERK_API_KEY_FILE"),
        *("STELLWERK_WORKSPACE", "STELLWERK_TOKEN_FILE", "STELLWERK_RUN", "STELLWERK_METRICS_DIR"),
    ):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("STELLWERK_DATA_DIR", str(tmp_path / "no-stack"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
