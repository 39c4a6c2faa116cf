"""One run: follow, change, repeat, and its files."""

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from google.protobuf.field_mask_pb2 import FieldMask

from stellwerk import names, paths, states
from stellwerk._async.core import AsyncCore
from stellwerk._async.reading import AsyncReading
from stellwerk.errors import StellwerkError
from stellwerk_protos.common.v1 import common_pb2
from stellwerk_protos.compute.v1 import workloads_pb2
from stellwerk_protos.runs.v1 import (
    artifacts_pb2,
    artifacts_pb2_grpc,
    runs_pb2,
    runs_pb2_grpc,
    snapshots_pb2,
    snapshots_pb2_grpc,
)

_ARTIFACTS_A_CALL = 500


class AsyncRun(AsyncReading):
    """One run: `message` is its state when it was read."""

    def __init__(self, core: AsyncCore, message: runs_pb2.Run) -> None:
        self._core = core
        self.message = message

    @property
    def _workspace(self) -> str:
        return self.message.name.rsplit("/runs/", 1)[0]

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

    async def refresh(self) -> "AsyncRun":
        """Reads the run again, in place."""
        stub = runs_pb2_grpc.RunServiceStub(self._core.channel)
        self.message = await self._core.call(stub.GetRun, runs_pb2.GetRunRequest(name=self.name))
        return self

    async def cancel(self, *, message: str = "") -> "AsyncRun":
        """Asks the run to stop."""
        stub = runs_pb2_grpc.RunServiceStub(self._core.channel)
        request = runs_pb2.CancelRunRequest(name=self.name, message=message)
        self.message = await self._core.call(stub.CancelRun, request)
        return self

    async def watch(self) -> AsyncIterator["AsyncRun"]:
        """The run now and after each change; ends after a terminal state."""
        async for run in watch_run(self._core, self.name):
            self.message = run.message
            yield run

    async def wait(self) -> "AsyncRun":
        """Waits until the run is over."""
        async for _ in self.watch():
            pass
        return self

    async def artifacts(self, path: str = "") -> Sequence[common_pb2.File]:
        """The files that the run produced, by path: all, or those at or below `path`."""
        stub = artifacts_pb2_grpc.ArtifactServiceStub(self._core.channel)
        request = artifacts_pb2.ListArtifactsRequest(parent=self.name, path=path)
        pages = await self._core.pages(stub.ListArtifacts, request)
        return [file for page in pages for file in page.files]

    async def download(self, folder: str | Path = ".", *, path: str = "") -> Sequence[common_pb2.File]:
        """Writes artifacts below `folder` and returns them."""
        files = await self.artifacts(path)
        if path and not files:
            raise StellwerkError(
                "ARTIFACT_NOT_FOUND",
                f"{self.name} has no output {path!r}.",
                f"See `stellwerk run show {self.id}`.",
                code="NOT_FOUND",
            )
        await self._core.download(self._workspace, files, Path(folder))
        return files

    async def upload(self, path: str | Path, target: str = "") -> Sequence[common_pb2.File]:
        """Keeps a local file or folder with the run, as or below `target`; returns the artifacts.

        Without `target` a file keeps its name and a folder's files their paths. Content that the
        platform has already does not travel again, so that a repeated upload goes on where it broke.
        """
        place, target = paths.given(path), target.rstrip("/")
        files = await self._core.upload(self._workspace, place)
        names.place(files, place, target)
        stub = artifacts_pb2_grpc.ArtifactServiceStub(self._core.channel)
        for start in range(0, len(files), _ARTIFACTS_A_CALL):
            part = files[start : start + _ARTIFACTS_A_CALL]
            request = artifacts_pb2.CreateArtifactsRequest(parent=self.name, files=part)
            await self._core.call(stub.CreateArtifacts, request)
        return files

    async def snapshot(self) -> Sequence[common_pb2.File]:
        """The files that the command started with."""
        if not self.message.workload.snapshot:
            raise StellwerkError(
                "NO_SNAPSHOT",
                f"{self.id} has no snapshot.",
                "Only submitted runs have one.",
                code="NOT_FOUND",
            )
        stub = snapshots_pb2_grpc.SnapshotServiceStub(self._core.channel)
        request = snapshots_pb2.GetSnapshotRequest(name=self.message.workload.snapshot)
        found = await self._core.call(stub.GetSnapshot, request)
        if not found.manifest:
            return found.files
        data = await self._core.read_blob(self._workspace, found.manifest)
        return snapshots_pb2.Manifest.FromString(data).files

    async def download_snapshot(self, target: str | Path) -> Sequence[common_pb2.File]:
        """Writes the snapshot into a folder, or into an archive if `target` ends in `.zip`."""
        files, place = await self.snapshot(), Path(target)
        if place.suffix == ".zip":
            await self._core.download_zip(self._workspace, files, place)
        else:
            await self._core.download(self._workspace, files, place)
        return files

    async def update(
        self,
        *,
        display_name: str | None = None,
        description: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> "AsyncRun":
        """Changes what is given; `tags` are merged into those that are there, "" as a value included."""
        changed = runs_pb2.Run(name=self.name)
        paths = []
        if display_name is not None:
            changed.display_name = display_name
            paths.append("display_name")
        if description is not None:
            changed.description = description
            paths.append("description")
        etag = ""
        if tags is not None:
            await self.refresh()
            changed.tags.update({**self.message.tags, **tags})
            paths.append("tags")
            etag = str(self.message.revision)
        request = runs_pb2.UpdateRunRequest(run=changed, update_mask=FieldMask(paths=paths), etag=etag)
        stub = runs_pb2_grpc.RunServiceStub(self._core.channel)
        self.message = await self._core.call(stub.UpdateRun, request)
        return self

    async def archive(self) -> "AsyncRun":
        """Hides the run, which has ended, from lists and searches."""
        stub = runs_pb2_grpc.RunServiceStub(self._core.channel)
        self.message = await self._core.call(stub.ArchiveRun, runs_pb2.ArchiveRunRequest(name=self.name))
        return self

    async def restore(self) -> "AsyncRun":
        """Shows the archived run again."""
        stub = runs_pb2_grpc.RunServiceStub(self._core.channel)
        self.message = await self._core.call(stub.RestoreRun, runs_pb2.RestoreRunRequest(name=self.name))
        return self

    async def children(self, *, deep: bool = False) -> Sequence["AsyncRun"]:
        """The runs directly below this one, newest first; with `deep` each is followed by those below it."""
        stub = runs_pb2_grpc.RunServiceStub(self._core.channel)
        found: list[AsyncRun] = []
        waiting = [self.name]
        while waiting:
            above = waiting.pop()
            request = runs_pb2.ListRunsRequest(
                parent=self._workspace, parent_run=above, include_archived=True
            )
            pages = await self._core.pages(stub.ListRuns, request)
            below = [AsyncRun(self._core, run) for page in pages for run in page.runs]
            at = next((i for i, run in enumerate(found) if run.name == above), -1) + 1
            found[at:at] = below
            waiting += [run.name for run in below if deep]
        return found

    async def resubmit(
        self,
        *,
        name: str = "",
        command: str = "",
        compute: str = "",
        environment: str = "",
        variables: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        display_name: str = "",
        experiment: str = "",
    ) -> "AsyncRun":
        """Submits the same again: the stored snapshot, environment version and inputs, unless given.

        `variables` and `tags` are merged into those of this run. The new run names this one.
        """
        old, work = self.message, self.message.workload
        if old.kind == runs_pb2.RUN_KIND_INTERACTIVE or not work.command:
            raise StellwerkError(
                "RUN_NOT_REPEATABLE",
                f"{self.id} is an interactive run, which has no command to repeat.",
                "Start its process again.",
                code="FAILED_PRECONDITION",
            )
        parent = self._workspace
        environment = names.version(parent, "environments", environment) if environment else ""
        request = runs_pb2.CreateRunRequest(
            parent=parent,
            run_id=name,
            experiment=names.resource(parent, "experiments", experiment) if experiment else old.experiment,
            display_name=display_name or old.display_name,
            description=old.description,
            tags={**old.tags, **(tags or {})},
            properties=old.properties,
            command=command or work.command,
            snapshot=work.snapshot,
            environment=names.version(parent, "environments", environment)
            if environment
            else work.environment,
            compute=names.resource(parent, "computes", compute) if compute else work.compute,
            inputs=[workloads_pb2.Input(name=item.name, resource=item.resource) for item in work.inputs],
            variables={**work.variables, **(variables or {})},
            secrets=work.secrets,
            git=old.git,
            parent_run=old.parent_run,
            cloned_from=self.name,
        )
        if work.HasField("grace"):
            request.grace.CopyFrom(work.grace)
        if work.HasField("timeout"):
            request.timeout.CopyFrom(work.timeout)
        stub = runs_pb2_grpc.RunServiceStub(self._core.channel)
        return AsyncRun(self._core, await self._core.call(stub.CreateRun, request))


async def watch_run(core: AsyncCore, name: str) -> AsyncIterator[AsyncRun]:
    """Each revision once, also across a reconnect."""
    stub = runs_pb2_grpc.RunServiceStub(core.channel)
    revision = 0
    async for message in core.stream(stub.WatchRun, runs_pb2.WatchRunRequest(name=name)):
        if message.revision > revision:
            revision = message.revision
            yield AsyncRun(core, message)
