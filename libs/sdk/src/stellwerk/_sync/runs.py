# Generated from ../_async/runs.py by scripts/generate_sync.py; do not edit.
"""Runs: submit, find, compare."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from google.protobuf.duration_pb2 import Duration

from stellwerk import jobs, names, paths
from stellwerk._sync.core import Core
from stellwerk._sync.reading import get_series
from stellwerk._sync.run import Run, watch_run
from stellwerk.points import Series
from stellwerk.recorder import Recorder
from stellwerk_protos.compute.v1 import workloads_pb2
from stellwerk_protos.registry.v1 import datasets_pb2, datasets_pb2_grpc, models_pb2, models_pb2_grpc
from stellwerk_protos.runs.v1 import (
    retention_pb2,
    retention_pb2_grpc,
    runs_pb2,
    runs_pb2_grpc,
    snapshots_pb2,
    snapshots_pb2_grpc,
)

if TYPE_CHECKING:
    from stellwerk._sync.assets import Environments


# More files than these are not part of the request, but of a manifest beside it.
_FILES_IN_A_REQUEST = 5_000


class Found(NamedTuple):
    """A run that a search found, with the last values of the metrics that were asked for."""

    run: Run
    metrics: Mapping[str, float]


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
        secrets: Sequence[str] = (),
        grace_seconds: float | None = None,
        timeout_seconds: float | None = None,
        parent: Run | Recorder | str | None = None,
    ) -> Run:
        """Uploads the folder `code` and submits `command` to run in a copy of it.

        `environment` is `sklearn:1` or `sklearn`; with `packages` (requirement lines) a version with
        those is made, called `environment` or else like the experiment, which is the folder's name
        unless given; with neither the command has Python and its standard library. `inputs` maps
        names to datasets (`digits:1`) or models (`models/digits:1`). `timeout_seconds` is the wall time
        after which the command is stopped. `secrets` are those that the script may read
        (`current_run().secret(name)`). `parent` is the run that this one is a part of, and whose
        experiment it has unless another one is named.
        """
        folder = paths.given(code)
        above = "" if parent is None else names.run(self._parent, parent)
        if above and not experiment:
            found = self._core.call(self._stub.GetRun, runs_pb2.GetRunRequest(name=above))
            experiment = found.experiment
        experiment = experiment or _experiment(folder)
        snapshot = create_snapshot(self._core, self._parent, folder)
        run_inputs = [
            workloads_pb2.Input(name=key, resource=self._input(reference))
            for key, reference in (inputs or {}).items()
        ]
        if packages:
            environment = (
                self._environments.create_version(
                    environment or _experiment(Path(names.last(experiment))).lower()[:63],
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
            secrets=[names.resource(self._parent, "secrets", secret) for secret in secrets],
            git=runs_pb2.GitInfo(**self._core.git(folder, self._parent)),
        )
        request.parent_run = above
        if timeout_seconds is not None:
            request.timeout.CopyFrom(_duration(timeout_seconds))
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

    def get(self, name: str) -> Run:
        """Returns one run."""
        request = runs_pb2.GetRunRequest(name=names.resource(self._parent, "runs", name))
        return Run(self._core, self._core.call(self._stub.GetRun, request))

    def list(
        self, *, experiment: str = "", include_archived: bool = False, limit: int | None = None
    ) -> Sequence[Run]:
        """Runs, newest first; with `experiment` only its own."""
        request = runs_pb2.ListRunsRequest(parent=self._parent, include_archived=include_archived)
        if experiment:
            request.experiment = names.resource(self._parent, "experiments", experiment)
        pages = self._core.pages(self._stub.ListRuns, request, limit)
        return [Run(self._core, run) for page in pages for run in page.runs]

    def cancel(self, name: str, *, message: str = "") -> Run:
        """Asks a run to stop."""
        name = names.resource(self._parent, "runs", name)
        request = runs_pb2.CancelRunRequest(name=name, message=message)
        return Run(self._core, self._core.call(self._stub.CancelRun, request))

    def watch(self, name: str) -> Iterator[Run]:
        """The run now and after each change; ends after a terminal state."""
        return watch_run(self._core, names.resource(self._parent, "runs", name))

    def submit_file(self, path: str | Path) -> Run:
        """Submits what a run configuration file says: `.runconfig` (v1) or command-job YAML (v2)."""
        job = jobs.load(paths.given(path))
        return self.submit(job.command, **job.arguments())

    def search(
        self,
        filter: str = "",
        *,
        order_by: str = "",
        metrics: Sequence[str] = (),
        include_archived: bool = False,
        limit: int | None = None,
    ) -> Iterator[Found]:
        """Runs that a filter finds (docs/search.md), sorted, newest first unless `order_by` says otherwise.

        `metrics` are those whose last values come with each run.
        """
        request = runs_pb2.SearchRunsRequest(
            parent=self._parent,
            filter=filter,
            order_by=order_by,
            metrics=metrics,
            include_archived=include_archived,
        )
        left = limit
        while True:
            request.page_size = min(200, left) if left is not None else 200
            page = self._core.call(self._stub.SearchRuns, request)
            for found in page.runs:
                yield Found(Run(self._core, found.run), dict(found.metrics))
            if left is not None:
                left -= len(page.runs)
            request.page_token = page.next_page_token
            if not page.next_page_token or (left is not None and left <= 0):
                return

    def compare(
        self, runs: Iterable[Run | str], *, include_equal: bool = False
    ) -> runs_pb2.CompareRunsResponse:
        """What differs between 2 to 100 runs: parameters, metrics, tags, code, environment, data."""
        request = runs_pb2.CompareRunsRequest(
            parent=self._parent, runs=self._names(runs), include_equal=include_equal
        )
        return self._core.call(self._stub.CompareRuns, request)

    def histories(
        self,
        runs: Iterable[Run | str],
        metrics: Sequence[str] = (),
        *,
        method: str = "lttb",
        max_points: int = 0,
    ) -> Sequence[Series]:
        """Several metrics (all unless named) of several runs in one call.

        `method` is "lttb" (keeps the look of the line), "min-max" (keeps every extreme) or "exact";
        `max_points` a series is 3 to 10,000, 0 means 1,000.
        """
        return get_series(self._core, self._parent, self._names(runs), metrics, method, max_points)

    def remove(
        self, runs: Iterable[Run | str] = (), *, experiment: str = "", dry_run: bool = True
    ) -> retention_pb2.RemovalReport:
        """Removes runs for good, those named or else what the retention rules let go.

        Only counts what would go unless `dry_run` is False.
        """
        stub = retention_pb2_grpc.RetentionServiceStub(self._core.channel)
        request = retention_pb2.RemoveRunsRequest(
            parent=self._parent, runs=self._names(runs), validate_only=dry_run
        )
        if experiment:
            request.experiment = names.resource(self._parent, "experiments", experiment)
        return self._core.call(stub.RemoveRuns, request)

    def _names(self, runs: Iterable[Run | str]) -> Sequence[str]:
        return [names.run(self._parent, run) for run in runs]


def create_snapshot(core: Core, parent: str, folder: Path) -> str:
    """Uploads a source folder; returns the name of its snapshot."""
    files = core.upload(parent, folder, ignore=True)
    stub = snapshots_pb2_grpc.SnapshotServiceStub(core.channel)
    request = snapshots_pb2.CreateSnapshotRequest(parent=parent)
    if len(files) > _FILES_IN_A_REQUEST:
        manifest = snapshots_pb2.Manifest(files=files).SerializeToString(deterministic=True)
        request.manifest = core.upload_bytes(parent, manifest, "manifest")
    else:
        request.files.extend(files)
    return (core.call(stub.CreateSnapshot, request, files=len(files))).name


def _experiment(folder: Path) -> str:
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", folder.resolve().name).strip("-._")
    return re.sub(r"\.{2,}", ".", name) or "default"


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration
