# Generated from ../_async/runs.py by scripts/generate_sync.py; do not edit.
"""Runs: submit, follow, read."""

import codecs
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf.duration_pb2 import Duration

from stellwerk import names, states
from stellwerk._sync.core import Core
from stellwerk.errors import StellwerkError
from stellwerk.points import Point, unpack
from stellwerk_protos.common.v1 import common_pb2
from stellwerk_protos.compute.v1 import workloads_pb2
from stellwerk_protos.registry.v1 import datasets_pb2, datasets_pb2_grpc, models_pb2, models_pb2_grpc
from stellwerk_protos.runs.v1 import (
    artifacts_pb2,
    artifacts_pb2_grpc,
    logs_pb2,
    logs_pb2_grpc,
    metrics_pb2,
    metrics_pb2_grpc,
    runs_pb2,
    runs_pb2_grpc,
    snapshots_pb2,
    snapshots_pb2_grpc,
)

if TYPE_CHECKING:
    from stellwerk._sync.assets import Environments


class Runs:
    """The runs of a workspace."""

    def __init__(self, core: Core, parent: str, environments: "Environments") -> None:
        self._core, self._parent, self._environments = core, parent, environments
        self._stub = runs_pb2_grpc.RunServiceStub(core.channel)

    def submit(
        self,
        command: str,
        *,
        code: str | Path = ".",
        environment: str = "",
        packages: Sequence[str] = (),
        python_version: str = "",
        compute: str = "local",
        inputs: Mapping[str, str] | None = None,
        experiment: str = "",
        name: str = "",
        display_name: str = "",
        description: str = "",
        tags: Mapping[str, str] | None = None,
        properties: Mapping[str, str] | None = None,
        variables: Mapping[str, str] | None = None,
        grace_seconds: float | None = None,
    ) -> "Run":
        """Uploads the folder `code` and submits `command` to run in a copy of it.

        `environment` is `sklearn:1` or `sklearn`; with `packages` (requirement lines) a version with
        those is made, called `environment` or else like the experiment, which is the folder's name
        unless given; with neither the command has Python and its standard library. `inputs` maps
        names to datasets (`digits:1`) or models (`models/digits:1`).
        """
        folder = Path(code)
        experiment = experiment or _experiment(folder)
        snapshot = create_snapshot(self._core, self._parent, folder)
        run_inputs = [
            workloads_pb2.Input(name=key, resource=self._input(reference))
            for key, reference in (inputs or {}).items()
        ]
        if packages:
            environment = (
                self._environments.create_version(
                    environment or _experiment(Path(experiment)).lower()[:63],
                    packages=packages,
                    python_version=python_version,
                )
            ).name
        request = runs_pb2.CreateRunRequest(
            parent=self._parent,
            run_id=name,
            experiment=names.resource(self._parent, "experiments", experiment),
            display_name=display_name,
            description=description,
            tags=tags,
            properties=properties,
            command=command,
            snapshot=snapshot,
            environment=names.version(self._parent, "environments", environment) if environment else "",
            compute=names.resource(self._parent, "computes", compute.removeprefix("azureml:")),
            inputs=run_inputs,
            variables=variables,
            git=runs_pb2.GitInfo(**self._core.git(folder)),
        )
        if grace_seconds is not None:
            request.grace.CopyFrom(_duration(grace_seconds))
        return Run(self._core, self._core.call(self._stub.CreateRun, request))

    def _input(self, reference: str) -> str:
        """The numbered version that a reference means now, so that the run names exactly its data."""
        reference = reference.removeprefix("azureml:")
        model = reference.removeprefix("models/").removeprefix("model:")
        if model != reference or "/models/" in reference:
            stub = models_pb2_grpc.ModelServiceStub(self._core.channel)
            wanted = names.version(self._parent, "models", model)
            request = models_pb2.GetModelVersionRequest(name=wanted)
            return (self._core.call(stub.GetModelVersion, request)).name
        data = datasets_pb2_grpc.DatasetServiceStub(self._core.channel)
        wanted = names.version(self._parent, "datasets", reference.removeprefix("datasets/"))
        return (
            self._core.call(data.GetDatasetVersion, datasets_pb2.GetDatasetVersionRequest(name=wanted))
        ).name

    def get(self, name: str) -> "Run":
        """Returns one run."""
        request = runs_pb2.GetRunRequest(name=names.resource(self._parent, "runs", name))
        return Run(self._core, self._core.call(self._stub.GetRun, request))

    def list(self, *, experiment: str = "", limit: int | None = None) -> Sequence["Run"]:
        """Runs, newest first; with `experiment` only its own."""
        request = runs_pb2.ListRunsRequest(parent=self._parent)
        if experiment:
            request.experiment = names.resource(self._parent, "experiments", experiment)
        pages = self._core.pages(self._stub.ListRuns, request, limit)
        return [Run(self._core, run) for page in pages for run in page.runs]

    def cancel(self, name: str, *, message: str = "") -> "Run":
        """Asks a run to stop."""
        name = names.resource(self._parent, "runs", name)
        request = runs_pb2.CancelRunRequest(name=name, message=message)
        return Run(self._core, self._core.call(self._stub.CancelRun, request))

    def watch(self, name: str) -> Iterator["Run"]:
        """The run now and after each change; ends after a terminal state."""
        return watch_run(self._core, names.resource(self._parent, "runs", name))

    def experiments(self, *, limit: int | None = None) -> Sequence[runs_pb2.Experiment]:
        """The experiments, by name."""
        request = runs_pb2.ListExperimentsRequest(parent=self._parent)
        pages = self._core.pages(self._stub.ListExperiments, request, limit)
        return [experiment for page in pages for experiment in page.experiments]


class Run:
    """One run: `message` is its state when it was read."""

    def __init__(self, core: Core, message: runs_pb2.Run) -> None:
        self._core = core
        self.message = message

    def __repr__(self) -> str:
        return f"<Run {self.name} {self.state}>"

    @property
    def name(self) -> str:
        """The full name."""
        return self.message.name

    @property
    def id(self) -> str:
        """The last segment of the name."""
        return names.last(self.message.name)

    @property
    def state(self) -> str:
        """`Running`, `Completed`, …"""
        return states.run(self.message)

    @property
    def is_over(self) -> bool:
        """Whether the run will not change its state any more."""
        return self.state in states.RUN_OVER

    def refresh(self) -> "Run":
        """Reads the run again, in place."""
        stub = runs_pb2_grpc.RunServiceStub(self._core.channel)
        self.message = self._core.call(stub.GetRun, runs_pb2.GetRunRequest(name=self.name))
        return self

    def cancel(self, *, message: str = "") -> "Run":
        """Asks the run to stop."""
        stub = runs_pb2_grpc.RunServiceStub(self._core.channel)
        request = runs_pb2.CancelRunRequest(name=self.name, message=message)
        self.message = self._core.call(stub.CancelRun, request)
        return self

    def watch(self) -> Iterator["Run"]:
        """The run now and after each change; ends after a terminal state."""
        for run in watch_run(self._core, self.name):
            self.message = run.message
            yield run

    def wait(self) -> "Run":
        """Waits until the run is over."""
        for _ in self.watch():
            pass
        return self

    def metrics(self) -> Sequence[metrics_pb2.MetricSummary]:
        """What is known about each metric without its points."""
        stub = metrics_pb2_grpc.MetricServiceStub(self._core.channel)
        request = metrics_pb2.ListMetricsRequest(parent=self.name)
        pages = self._core.pages(stub.ListMetrics, request)
        return [metric for page in pages for metric in page.metrics]

    def history(self, metric: str) -> Sequence[Point]:
        """All points of one metric, in the order stored."""
        stub = metrics_pb2_grpc.MetricServiceStub(self._core.channel)
        request = metrics_pb2.GetMetricHistoryRequest(parent=self.name, metric=metric)
        points: list[Point] = []
        while True:
            page = self._core.call(stub.GetMetricHistory, request)
            points += unpack(page.columns)
            if not page.next_page_token:
                return points
            request.page_token = page.next_page_token

    def watch_metrics(self) -> Iterator[Mapping[str, Sequence[Point]]]:
        """The points by metric, first what is stored, then what arrives; ends with the run."""
        stub = metrics_pb2_grpc.MetricServiceStub(self._core.channel)
        request = metrics_pb2.WatchMetricsRequest(parent=self.name)
        for part in self._core.stream(stub.WatchMetrics, request):
            request.cursor = part.cursor or request.cursor
            yield {columns.metric: unpack(columns) for columns in part.columns}

    def logs(self) -> Sequence[logs_pb2.Log]:
        """The logs and their sizes."""
        stub = logs_pb2_grpc.LogServiceStub(self._core.channel)
        return (self._core.call(stub.ListLogs, logs_pb2.ListLogsRequest(parent=self.name))).logs

    def log(self, *, log: str = "", follow: bool = False, offset: int = 0) -> Iterator[str]:
        """The text of a log in pieces; with `follow` until the run is over.

        Without `log` it is what the command wrote to stdout and stderr. `offset` counts bytes.
        """
        stub = logs_pb2_grpc.LogServiceStub(self._core.channel)
        request = logs_pb2.ReadLogRequest(parent=self.name, log=log, offset=offset, follow=follow)
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for part in self._core.stream(stub.ReadLog, request):
            request.offset = part.offset + len(part.data)
            if text := decoder.decode(part.data):
                yield text
        if text := decoder.decode(b"", final=True):
            yield text

    def artifacts(self, path: str = "") -> Sequence[common_pb2.File]:
        """The files that the run produced, by path: all, or those at or below `path`."""
        stub = artifacts_pb2_grpc.ArtifactServiceStub(self._core.channel)
        request = artifacts_pb2.ListArtifactsRequest(parent=self.name, path=path)
        pages = self._core.pages(stub.ListArtifacts, request)
        return [file for page in pages for file in page.files]

    def download(self, folder: str | Path = ".", *, path: str = "") -> Sequence[common_pb2.File]:
        """Writes artifacts below `folder` and returns them."""
        files = self.artifacts(path)
        if path and not files:
            raise StellwerkError(
                "ARTIFACT_NOT_FOUND",
                f"{self.name} has no output {path!r}.",
                f"See `stellwerk run show {self.id}`.",
                code="NOT_FOUND",
            )
        self._core.download(self.name.rsplit("/runs/", 1)[0], files, Path(folder))
        return files


def watch_run(core: Core, name: str) -> Iterator[Run]:
    """Each revision once, also across a reconnect."""
    stub = runs_pb2_grpc.RunServiceStub(core.channel)
    revision = 0
    for message in core.stream(stub.WatchRun, runs_pb2.WatchRunRequest(name=name)):
        if message.revision > revision:
            revision = message.revision
            yield Run(core, message)


def create_snapshot(core: Core, parent: str, folder: Path) -> str:
    """Uploads a source folder; returns the name of its snapshot."""
    files = core.upload(parent, folder, ignore=True)
    stub = snapshots_pb2_grpc.SnapshotServiceStub(core.channel)
    request = snapshots_pb2.CreateSnapshotRequest(parent=parent, files=files)
    return (core.call(stub.CreateSnapshot, request)).name


def _experiment(folder: Path) -> str:
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", folder.resolve().name).strip("-._")
    return re.sub(r"\.{2,}", ".", name) or "default"


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration
