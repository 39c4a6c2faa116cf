"""Runs: submit, find, compare."""

import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from google.protobuf.duration_pb2 import Duration

from stellwerk import jobs, names, paths
from stellwerk._async.core import AsyncCore
from stellwerk._async.reading import get_series
from stellwerk._async.run import AsyncRun, watch_run
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
    from stellwerk._async.assets import AsyncEnvironments


# More files than these are not part of the request, but of a manifest beside it.
_FILES_IN_A_REQUEST = 5_000


class AsyncFound(NamedTuple):
    """A run that a search found, with the last values of the metrics that were asked for."""

    run: AsyncRun
    metrics: Mapping[str, float]


class AsyncRuns:
    """The runs of a workspace."""

    def __init__(self, core: AsyncCore, parent: str, environments: "AsyncEnvironments") -> None:
        self._core, self._parent, self._environments = core, parent, environments
        self._stub = runs_pb2_grpc.RunServiceStub(core.channel)

    async def submit(
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
        parent: AsyncRun | Recorder | str | None = None,
    ) -> AsyncRun:
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
            found = await self._core.call(self._stub.GetRun, runs_pb2.GetRunRequest(name=above))
            experiment = found.experiment
        experiment = experiment or _experiment(folder)
        snapshot = await create_snapshot(self._core, self._parent, folder)
        run_inputs = [
            workloads_pb2.Input(name=key, resource=await self._input(reference))
            for key, reference in (inputs or {}).items()
        ]
        if packages:
            environment = (
                await self._environments.create_version(
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
            git=runs_pb2.GitInfo(**await self._core.git(folder, self._parent)),
        )
        request.parent_run = above
        if timeout_seconds is not None:
            request.timeout.CopyFrom(_duration(timeout_seconds))
        if grace_seconds is not None:
            request.grace.CopyFrom(_duration(grace_seconds))
        return AsyncRun(self._core, await self._core.call(self._stub.CreateRun, request))

    async def _input(self, reference: str) -> str:
        """The numbered version that a reference means now, so that the run names exactly its data."""
        reference = reference.removeprefix("azureml:")
        model = reference.removeprefix("models/").removeprefix("model:")
        if model != reference or "/models/" in reference:
            stub = models_pb2_grpc.ModelServiceStub(self._core.channel)
            wanted = names.version(self._parent, "models", model)
            request = models_pb2.GetModelVersionRequest(name=wanted)
            return (await self._core.call(stub.GetModelVersion, request)).name
        data = datasets_pb2_grpc.DatasetServiceStub(self._core.channel)
        wanted = names.version(self._parent, "datasets", reference.removeprefix("datasets/"))
        return (
            await self._core.call(data.GetDatasetVersion, datasets_pb2.GetDatasetVersionRequest(name=wanted))
        ).name

    async def get(self, name: str) -> AsyncRun:
        """Returns one run."""
        request = runs_pb2.GetRunRequest(name=names.resource(self._parent, "runs", name))
        return AsyncRun(self._core, await self._core.call(self._stub.GetRun, request))

    async def list(
        self, *, experiment: str = "", include_archived: bool = False, limit: int | None = None
    ) -> Sequence[AsyncRun]:
        """Runs, newest first; with `experiment` only its own."""
        request = runs_pb2.ListRunsRequest(parent=self._parent, include_archived=include_archived)
        if experiment:
            request.experiment = names.resource(self._parent, "experiments", experiment)
        pages = await self._core.pages(self._stub.ListRuns, request, limit)
        return [AsyncRun(self._core, run) for page in pages for run in page.runs]

    async def cancel(self, name: str, *, message: str = "") -> AsyncRun:
        """Asks a run to stop."""
        name = names.resource(self._parent, "runs", name)
        request = runs_pb2.CancelRunRequest(name=name, message=message)
        return AsyncRun(self._core, await self._core.call(self._stub.CancelRun, request))

    def watch(self, name: str) -> AsyncIterator[AsyncRun]:
        """The run now and after each change; ends after a terminal state."""
        return watch_run(self._core, names.resource(self._parent, "runs", name))

    async def submit_file(self, path: str | Path) -> AsyncRun:
        """Submits what a run configuration file says: `.runconfig` (v1) or command-job YAML (v2)."""
        job = jobs.load(paths.given(path))
        return await self.submit(job.command, **job.arguments())

    async def search(
        self,
        filter: str = "",
        *,
        order_by: str = "",
        metrics: Sequence[str] = (),
        include_archived: bool = False,
        limit: int | None = None,
    ) -> AsyncIterator[AsyncFound]:
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
            page = await self._core.call(self._stub.SearchRuns, request)
            for found in page.runs:
                yield AsyncFound(AsyncRun(self._core, found.run), dict(found.metrics))
            if left is not None:
                left -= len(page.runs)
            request.page_token = page.next_page_token
            if not page.next_page_token or (left is not None and left <= 0):
                return

    async def compare(
        self, runs: Iterable[AsyncRun | str], *, include_equal: bool = False
    ) -> runs_pb2.CompareRunsResponse:
        """What differs between 2 to 100 runs: parameters, metrics, tags, code, environment, data."""
        request = runs_pb2.CompareRunsRequest(
            parent=self._parent, runs=self._names(runs), include_equal=include_equal
        )
        return await self._core.call(self._stub.CompareRuns, request)

    async def histories(
        self,
        runs: Iterable[AsyncRun | str],
        metrics: Sequence[str] = (),
        *,
        method: str = "lttb",
        max_points: int = 0,
    ) -> Sequence[Series]:
        """Several metrics (all unless named) of several runs in one call.

        `method` is "lttb" (keeps the look of the line), "min-max" (keeps every extreme) or "exact";
        `max_points` a series is 3 to 10,000, 0 means 1,000.
        """
        return await get_series(self._core, self._parent, self._names(runs), metrics, method, max_points)

    async def remove(
        self, runs: Iterable[AsyncRun | str] = (), *, experiment: str = "", dry_run: bool = True
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
        return await self._core.call(stub.RemoveRuns, request)

    def _names(self, runs: Iterable[AsyncRun | str]) -> Sequence[str]:
        return [names.run(self._parent, run) for run in runs]


async def create_snapshot(core: AsyncCore, parent: str, folder: Path) -> str:
    """Uploads a source folder; returns the name of its snapshot."""
    files = await core.upload(parent, folder, ignore=True)
    stub = snapshots_pb2_grpc.SnapshotServiceStub(core.channel)
    request = snapshots_pb2.CreateSnapshotRequest(parent=parent)
    if len(files) > _FILES_IN_A_REQUEST:
        manifest = snapshots_pb2.Manifest(files=files).SerializeToString(deterministic=True)
        request.manifest = await core.upload_bytes(parent, manifest, "manifest")
    else:
        request.files.extend(files)
    return (await core.call(stub.CreateSnapshot, request, files=len(files))).name


def _experiment(folder: Path) -> str:
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", folder.resolve().name).strip("-._")
    return re.sub(r"\.{2,}", ".", name) or "default"


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration
