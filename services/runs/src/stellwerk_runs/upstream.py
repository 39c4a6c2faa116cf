"""What this service asks of others: does it exist, and which version is it."""

from collections.abc import Sequence

import grpc
import httpx

from stellwerk_platform.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable, from_rpc
from stellwerk_platform.mongo import Database
from stellwerk_platform.quotas import Quotas
from stellwerk_platform.workspaces import Workspaces
from stellwerk_protos.common.v1.common_pb2 import File
from stellwerk_protos.compute.v1 import computes_pb2, computes_pb2_grpc
from stellwerk_protos.registry.v1 import (
    blobs_pb2,
    blobs_pb2_grpc,
    datasets_pb2,
    datasets_pb2_grpc,
    environments_pb2,
    environments_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    workspaces_pb2,
    workspaces_pb2_grpc,
)
from stellwerk_protos.secrets.v1 import secrets_pb2, secrets_pb2_grpc

_BLOBS_PER_CALL = 1_000
_BLOB_SECONDS = 60


class Registry:
    """The registry as this service uses it; its errors reach the caller as they are."""

    def __init__(self, channel: grpc.aio.Channel, database: Database) -> None:
        self._workspaces = workspaces_pb2_grpc.WorkspaceServiceStub(channel)
        self.workspaces = Workspaces(database, self._workspace)
        self.quotas = Quotas(channel)
        self.workspaces.on_change(self.quotas.forget)
        self._environments = environments_pb2_grpc.EnvironmentServiceStub(channel)
        self._datasets = datasets_pb2_grpc.DatasetServiceStub(channel)
        self._models = models_pb2_grpc.ModelServiceStub(channel)
        self._blobs = blobs_pb2_grpc.BlobServiceStub(channel)

    async def check_workspace(self, name: str) -> None:
        """Raises `NotFound` unless the workspace exists, `FailedPrecondition` while it is being deleted."""
        await self.workspaces.check(name)

    async def _workspace(self, name: str) -> workspaces_pb2.Workspace:
        return await self._workspaces.GetWorkspace(workspaces_pb2.GetWorkspaceRequest(name=name))

    async def environment(self, name: str) -> str:
        """The name with the number of the version; raises `NotFound`."""
        request = environments_pb2.GetEnvironmentVersionRequest(name=name)
        return (await self._environments.GetEnvironmentVersion(request)).name

    async def environment_version(self, name: str) -> environments_pb2.EnvironmentVersion | None:
        """The version, None when it is gone."""
        request = environments_pb2.GetEnvironmentVersionRequest(name=name)
        try:
            return await self._environments.GetEnvironmentVersion(request)
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.NOT_FOUND:
                return None
            raise

    async def digest(self, name: str) -> str:
        """The digest of a dataset or model version, "" when it is gone."""
        try:
            if "/datasets/" in name:
                dataset = datasets_pb2.GetDatasetVersionRequest(name=name)
                return (await self._datasets.GetDatasetVersion(dataset)).digest
            model = models_pb2.GetModelVersionRequest(name=name)
            return (await self._models.GetModelVersion(model)).digest
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.NOT_FOUND:
                return ""
            raise

    async def dataset(self, name: str) -> str:
        """The name with the number of the version; raises `NotFound`."""
        request = datasets_pb2.GetDatasetVersionRequest(name=name)
        return (await self._datasets.GetDatasetVersion(request)).name

    async def model(self, name: str) -> str:
        """The name with the number of the version; raises `NotFound`."""
        return (await self._models.GetModelVersion(models_pb2.GetModelVersionRequest(name=name))).name

    async def check_blobs(self, workspace: str, files: Sequence[File]) -> None:
        """Raises `FailedPrecondition` naming a file whose content has not been uploaded."""
        by_digest = {file.sha256: file for file in files if not file.link_target}
        digests = list(by_digest)
        for start in range(0, len(digests), _BLOBS_PER_CALL):
            blobs = [
                blobs_pb2.Blob(sha256=digest, size_bytes=by_digest[digest].size_bytes)
                for digest in digests[start : start + _BLOBS_PER_CALL]
            ]
            request = blobs_pb2.PrepareUploadsRequest(parent=workspace, blobs=blobs)
            answer = await self._blobs.PrepareUploads(request)
            if answer.uploads:
                raise _missing(by_digest[answer.uploads[0].sha256].path)

    async def check_blob(self, workspace: str, sha256: str, what: str) -> None:
        """Raises `FailedPrecondition` naming `what` when its content has not been uploaded."""
        await self.check_blobs(workspace, [File(path=what, sha256=sha256)])

    async def read_blob(self, workspace: str, sha256: str, most: int) -> bytes:
        """The content of a blob; raises `FailedPrecondition`, and `InvalidArgument` over `most` bytes."""
        # Asked as for an upload, so that it stays while it is being recorded.
        await self.check_blob(workspace, sha256, sha256)
        request = blobs_pb2.PrepareDownloadsRequest(parent=workspace, sha256=[sha256])
        url = (await self._blobs.PrepareDownloads(request)).downloads[0].url
        body = bytearray()
        try:
            async with (
                httpx.AsyncClient(timeout=_BLOB_SECONDS, trust_env=False) as client,
                client.stream("GET", url) as response,
            ):
                response.raise_for_status()
                async for part in response.aiter_bytes():
                    body += part
                    if len(body) > most:
                        raise InvalidArgument(
                            "MANIFEST_TOO_LARGE",
                            f"The manifest has more than {most:,} bytes.",
                            "Leave folders out with .amlignore, or register them as a dataset.",
                        )
        except httpx.HTTPError as error:
            raise Unavailable(
                "BLOB_STORE_UNAVAILABLE",
                f"The blob store does not answer: {type(error).__name__}",
                "Check the S3 server (`stellwerk status`), then try again.",
            ) from error
        return bytes(body)

    async def release_blobs(
        self, workspace: str, digests: Sequence[str], *, validate_only: bool
    ) -> blobs_pb2.ReleaseBlobsResponse:
        """Gives up blobs that nothing here refers to."""
        total = blobs_pb2.ReleaseBlobsResponse()
        for start in range(0, len(digests), _BLOBS_PER_CALL):
            some = digests[start : start + _BLOBS_PER_CALL]
            answer = await self._blobs.ReleaseBlobs(
                blobs_pb2.ReleaseBlobsRequest(parent=workspace, sha256=some, validate_only=validate_only)
            )
            total.blob_count += answer.blob_count
            total.size_bytes += answer.size_bytes
            total.later.extend(answer.later)
        return total


def _missing(path: str) -> FailedPrecondition:
    return FailedPrecondition(
        "BLOB_MISSING",
        f"The content of {path!r} has not been uploaded.",
        "Upload what PrepareUploads names, then try again.",
        {"path": path},
    )


class Compute:
    """The compute service as this service uses it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._computes = computes_pb2_grpc.ComputeServiceStub(channel)

    async def check(self, name: str) -> None:
        """Raises `NotFound` unless the compute exists."""
        try:
            await self._computes.GetCompute(computes_pb2.GetComputeRequest(name=name))
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.NOT_FOUND:
                raise from_rpc(error) from error
            raise NotFound(
                "COMPUTE_NOT_FOUND",
                f"There is no compute {name}.",
                "See `stellwerk compute list`; every workspace has the compute 'local'.",
            ) from error


class Secrets:
    """The named secrets as this service uses them: their names only."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._secrets = secrets_pb2_grpc.SecretServiceStub(channel)

    async def check(self, name: str) -> None:
        """Raises `NotFound` unless the secret exists, `FailedPrecondition` when it is deleted."""
        try:
            found = await self._secrets.GetSecret(secrets_pb2.GetSecretRequest(name=name))
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from error
        if found.HasField("delete_time"):
            raise FailedPrecondition(
                "SECRET_DELETED", f"{name} is deleted.", "Bring it back with `stellwerk secret undelete`."
            )
