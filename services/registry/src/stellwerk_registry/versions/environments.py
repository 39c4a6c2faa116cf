"""EnvironmentService."""

import re
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

from stellwerk_platform import names
from stellwerk_platform.auth import current_caller
from stellwerk_platform.checks import check_description, check_tags
from stellwerk_platform.errors import InvalidArgument
from stellwerk_platform.journal import Fact
from stellwerk_protos.registry.v1 import environments_pb2 as pb
from stellwerk_protos.registry.v1 import environments_pb2_grpc
from stellwerk_registry.versions.store import VersionStore
from stellwerk_registry.workspaces.store import WorkspaceStore

_PARENT = "workspaces/*/environments/*"
_PYTHON = re.compile(r"3\.\d{1,2}(\.\d{1,2})?")
_PACKAGES = 1_000
_LOCK_BYTES = 8 * 1024 * 1024


def check_packages(packages: list[str]) -> None:
    """Raises `InvalidArgument` naming the first line that is no PEP 508 requirement."""
    if len(packages) > _PACKAGES:
        raise InvalidArgument("TOO_MANY_PACKAGES", f"{len(packages)} packages.", f"Use up to {_PACKAGES}.")
    for line in packages:
        try:
            Requirement(line)
        except InvalidRequirement as error:
            raise InvalidArgument(
                "INVALID_REQUIREMENT",
                f"{line[:200]!r} is not a requirement: {str(error).splitlines()[0]}",
                "Write it as in a requirements file, for example 'scikit-learn>=1.7'.",
            ) from None


def same_content(request: pb.CreateEnvironmentVersionRequest, version: pb.EnvironmentVersion) -> bool:
    """Whether the newest version says what the request would register."""
    return (
        list(request.packages) == list(version.packages)
        and request.python_version == version.python_version
        and dict(request.variables) == dict(version.variables)
    )


class EnvironmentService(environments_pb2_grpc.EnvironmentServiceServicer):
    """The servicer."""

    def __init__(self, store: VersionStore[pb.EnvironmentVersion], workspaces: WorkspaceStore) -> None:
        self._store = store
        self._workspaces = workspaces

    async def CreateEnvironmentVersion(
        self, request: pb.CreateEnvironmentVersionRequest, context: Any
    ) -> pb.EnvironmentVersion:
        workspace, _ = names.parse(_PARENT, request.parent)
        await self._workspaces.check(workspace)
        _check(request)
        newest = await self._store.newest(request.parent)
        if newest is not None and same_content(request, newest):
            return newest
        creator = current_caller().subject

        def build(number: int) -> pb.EnvironmentVersion:
            return pb.EnvironmentVersion(
                name=f"{request.parent}/versions/{number}",
                creator=creator,
                version=number,
                description=request.description,
                tags=request.tags,
                python_version=request.python_version,
                packages=request.packages,
                variables=request.variables,
            )

        return await self._store.create_next(request.parent, build, request.request_id)

    async def GetEnvironmentVersion(
        self, request: pb.GetEnvironmentVersionRequest, context: Any
    ) -> pb.EnvironmentVersion:
        names.parse(f"{_PARENT}/versions/*", request.name)
        return await self._store.resolve(request.name)

    async def ListEnvironmentVersions(
        self, request: pb.ListEnvironmentVersionsRequest, context: Any
    ) -> pb.ListEnvironmentVersionsResponse:
        workspace, _ = names.parse(_PARENT, request.parent, wildcard=True)
        await self._workspaces.check(workspace)
        items, token = await self._store.page_below(request.parent, request.page_size, request.page_token)
        return pb.ListEnvironmentVersionsResponse(environment_versions=items, next_page_token=token)

    async def LockEnvironmentVersion(
        self, request: pb.LockEnvironmentVersionRequest, context: Any
    ) -> pb.EnvironmentVersion:
        names.parse(f"{_PARENT}/versions/*", request.name)
        if len(request.lock) > _LOCK_BYTES or not request.digest.startswith("sha256:"):
            raise InvalidArgument(
                "INVALID_LOCK", "The lock is too large or has no digest.", "Resolve the environment again."
            )

        def lock(version: pb.EnvironmentVersion) -> Fact | None:
            if version.digest:
                return None
            if version.packages and not request.lock:
                raise InvalidArgument("INVALID_LOCK", "The lock is empty.", "Resolve the environment again.")
            version.lock, version.digest = request.lock, request.digest
            return Fact("locked", "RESOLVED", f"{len(request.lock.splitlines())} lines")

        return await self._store.update(request.name, lock)


def _check(request: pb.CreateEnvironmentVersionRequest) -> None:
    check_description(request.description)
    check_tags(request.tags)
    check_tags(request.variables, "variables", 200)
    check_packages(list(request.packages))
    if request.python_version and not _PYTHON.fullmatch(request.python_version):
        raise InvalidArgument(
            "INVALID_PYTHON_VERSION",
            f"{request.python_version[:40]!r} is no Python version.",
            "Write for example '3.11'.",
        )
