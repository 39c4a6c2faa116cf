"""Datasets, environments and models: versions that never change."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from stellwerk import names, paths
from stellwerk._async.core import AsyncCore
from stellwerk._async.run import AsyncRun
from stellwerk.errors import invalid
from stellwerk_protos.registry.v1 import (
    datasets_pb2,
    datasets_pb2_grpc,
    environments_pb2,
    environments_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
)


class AsyncDatasets:
    """The datasets of a workspace."""

    def __init__(self, core: AsyncCore, parent: str) -> None:
        self._core, self._parent = core, parent
        self._stub = datasets_pb2_grpc.DatasetServiceStub(core.channel)

    async def create_version(
        self, name: str, path: str | Path, *, description: str = "", tags: Mapping[str, str] | None = None
    ) -> datasets_pb2.DatasetVersion:
        """Uploads a file or folder and registers it as the next version of a dataset."""
        files = await self._core.upload(self._parent, paths.given(path))
        request = datasets_pb2.CreateDatasetVersionRequest(
            parent=names.resource(self._parent, "datasets", name),
            description=description,
            tags=tags,
            source=str(path),
            files=files,
        )
        return await self._core.call(self._stub.CreateDatasetVersion, request)

    async def get(self, reference: str) -> datasets_pb2.DatasetVersion:
        """Returns one version: `digits:1`, or `digits` for the latest."""
        request = datasets_pb2.GetDatasetVersionRequest(
            name=names.version(self._parent, "datasets", reference)
        )
        return await self._core.call(self._stub.GetDatasetVersion, request)

    async def list(
        self, name: str = "-", *, limit: int | None = None
    ) -> Sequence[datasets_pb2.DatasetVersion]:
        """Versions of one dataset, or of all, newest first."""
        request = datasets_pb2.ListDatasetVersionsRequest(
            parent=names.resource(self._parent, "datasets", name)
        )
        pages = await self._core.pages(self._stub.ListDatasetVersions, request, limit)
        return [version for page in pages for version in page.dataset_versions]

    async def download(self, reference: str, folder: str | Path) -> datasets_pb2.DatasetVersion:
        """Writes the files of a version below `folder`."""
        version = await self.get(reference)
        await self._core.download(self._parent, version.files, Path(folder))
        return version


class AsyncEnvironments:
    """The environments of a workspace."""

    def __init__(self, core: AsyncCore, parent: str) -> None:
        self._core, self._parent = core, parent
        self._stub = environments_pb2_grpc.EnvironmentServiceStub(core.channel)

    async def create_version(
        self,
        name: str,
        *,
        packages: Sequence[str] = (),
        python_version: str = "",
        variables: Mapping[str, str] | None = None,
        description: str = "",
        tags: Mapping[str, str] | None = None,
    ) -> environments_pb2.EnvironmentVersion:
        """Registers the next version; the same content as the newest version returns that one.

        `packages` are requirement lines (PEP 508); an empty `python_version` means that of the node.
        """
        request = environments_pb2.CreateEnvironmentVersionRequest(
            parent=names.resource(self._parent, "environments", name),
            description=description,
            tags=tags,
            python_version=python_version,
            packages=packages,
            variables=variables,
        )
        return await self._core.call(self._stub.CreateEnvironmentVersion, request)

    async def get(self, reference: str) -> environments_pb2.EnvironmentVersion:
        """Returns one version: `sklearn:1`, or `sklearn` for the latest."""
        request = environments_pb2.GetEnvironmentVersionRequest(
            name=names.version(self._parent, "environments", reference)
        )
        return await self._core.call(self._stub.GetEnvironmentVersion, request)

    async def list(
        self, name: str = "-", *, limit: int | None = None
    ) -> Sequence[environments_pb2.EnvironmentVersion]:
        """Versions of one environment, or of all, newest first."""
        request = environments_pb2.ListEnvironmentVersionsRequest(
            parent=names.resource(self._parent, "environments", name)
        )
        pages = await self._core.pages(self._stub.ListEnvironmentVersions, request, limit)
        return [version for page in pages for version in page.environment_versions]


class AsyncModels:
    """The models of a workspace."""

    def __init__(self, core: AsyncCore, parent: str) -> None:
        self._core, self._parent = core, parent
        self._stub = models_pb2_grpc.ModelServiceStub(core.channel)

    async def register(
        self,
        name: str,
        *,
        path: str | Path,
        run: AsyncRun | str | None = None,
        description: str = "",
        tags: Mapping[str, str] | None = None,
    ) -> models_pb2.ModelVersion:
        """Registers the next version: `path` is in the outputs of `run`, or else a local file or folder."""
        if isinstance(run, AsyncRun):
            run = run.name
        if run == "":
            raise invalid("RUN_MISSING", "The name of the run is empty.", "Name a run, or leave it out.")
        request = models_pb2.CreateModelVersionRequest(
            parent=names.resource(self._parent, "models", name), description=description, tags=tags
        )
        if run is None:
            request.files.extend(await self._core.upload(self._parent, paths.given(path)))
        else:
            request.run = names.resource(self._parent, "runs", run)
            request.path = paths.given(path).as_posix()
        return await self._core.call(self._stub.CreateModelVersion, request)

    async def get(self, reference: str) -> models_pb2.ModelVersion:
        """Returns one version: `digits:1`, or `digits` for the latest."""
        request = models_pb2.GetModelVersionRequest(name=names.version(self._parent, "models", reference))
        return await self._core.call(self._stub.GetModelVersion, request)

    async def list(self, name: str = "-", *, limit: int | None = None) -> Sequence[models_pb2.ModelVersion]:
        """Versions of one model, or of all, newest first."""
        request = models_pb2.ListModelVersionsRequest(parent=names.resource(self._parent, "models", name))
        pages = await self._core.pages(self._stub.ListModelVersions, request, limit)
        return [version for page in pages for version in page.model_versions]

    async def delete(self, reference: str) -> models_pb2.ModelVersion:
        """Deletes one version, `digits:1`; its number is not given again.

        Refused (`MODEL_IN_USE`) while a deployment serves it or can be rolled back to it.
        """
        if ":" not in reference and "/" not in reference:
            raise invalid("VERSION_MISSING", f"{reference!r} names no version.", "Name one: digits:1")
        name = names.version(self._parent, "models", reference)
        request = models_pb2.DeleteModelVersionRequest(name=name)
        return await self._core.call(self._stub.DeleteModelVersion, request)

    async def download(self, reference: str, folder: str | Path) -> models_pb2.ModelVersion:
        """Writes the files of a version below `folder`."""
        version = await self.get(reference)
        await self._core.download(self._parent, version.files, Path(folder))
        return version
