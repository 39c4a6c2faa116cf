"""What a client sees of the registry, in front of the real servers."""

import asyncio
import hashlib
from collections.abc import Awaitable

import grpc
import httpx
import pytest

from services.registry.tests.support import WORKSPACE, Registry
from stellwerk_platform.errors import PlatformError, from_rpc
from stellwerk_platform.grpc_client import connect
from stellwerk_protos.common.v1.common_pb2 import File
from stellwerk_protos.registry.v1 import blobs_pb2, datasets_pb2, environments_pb2, models_pb2, workspaces_pb2
from stellwerk_protos.registry.v1.workspaces_pb2_grpc import WorkspaceServiceStub


async def refused(call: Awaitable[object]) -> PlatformError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc(caught.value)


def dataset(name: str, *files: File) -> datasets_pb2.CreateDatasetVersionRequest:
    return datasets_pb2.CreateDatasetVersionRequest(parent=f"{WORKSPACE}/datasets/{name}", files=files)


def environment(name: str, *packages: str) -> environments_pb2.CreateEnvironmentVersionRequest:
    return environments_pb2.CreateEnvironmentVersionRequest(
        parent=f"{WORKSPACE}/environments/{name}", packages=packages
    )


async def test_nothing_answers_without_a_key(registry: Registry) -> None:
    async with connect(registry.address) as channel:
        error = await refused(
            WorkspaceServiceStub(channel).ListWorkspaces(workspaces_pb2.ListWorkspacesRequest())
        )
    assert error.reason == "KEY_MISSING"


async def test_a_workspace_is_made_once_and_listed(registry: Registry) -> None:
    request = workspaces_pb2.CreateWorkspaceRequest(
        workspace_id="team-a", tags={"cost": "42"}, request_id="r1"
    )
    made = await registry.workspaces.CreateWorkspace(request)
    assert (made.name, made.revision, made.creator, dict(made.tags)) == (
        "workspaces/team-a",
        1,
        "users/owner",
        {"cost": "42"},
    )
    assert await registry.workspaces.CreateWorkspace(request) == made
    request.request_id = "r2"
    assert (await refused(registry.workspaces.CreateWorkspace(request))).reason == "ALREADY_EXISTS"
    listed = await registry.workspaces.ListWorkspaces(workspaces_pb2.ListWorkspacesRequest())
    assert made in listed.workspaces


@pytest.mark.parametrize("bad", ["", "a", "UPPER", "a b", "x" * 33, "a\n", "ä" * 5, "-ab"])
async def test_an_illegal_workspace_name_is_refused(registry: Registry, bad: str) -> None:
    error = await refused(
        registry.workspaces.CreateWorkspace(workspaces_pb2.CreateWorkspaceRequest(workspace_id=bad))
    )
    assert error.reason == "INVALID_NAME"
    assert "2 to 32" in error.cure


async def test_an_unknown_workspace_is_like_one_of_others(registry: Registry) -> None:
    request = datasets_pb2.CreateDatasetVersionRequest(parent="workspaces/nowhere/datasets/d")
    error = await refused(registry.datasets.CreateDatasetVersion(request))
    assert (error.reason, "nowhere" in error.message) == ("PERMISSION_DENIED", True)
    assert "nowhere" in error.message


async def test_dataset_versions_count_up_and_keep_their_content(registry: Registry) -> None:
    one, two = await registry.upload("a.csv", b"1,2\n"), await registry.upload("b.csv", b"3,4\n")
    first = await registry.datasets.CreateDatasetVersion(dataset("digits", one))
    second = await registry.datasets.CreateDatasetVersion(dataset("digits", two, one))
    assert (first.version, second.version) == (1, 2)
    assert [file.path for file in second.files] == ["a.csv", "b.csv"]
    assert first.digest != second.digest
    name = f"{WORKSPACE}/datasets/digits/versions/latest"
    assert (
        await registry.datasets.GetDatasetVersion(datasets_pb2.GetDatasetVersionRequest(name=name)) == second
    )
    listed = await registry.datasets.ListDatasetVersions(
        datasets_pb2.ListDatasetVersionsRequest(parent=f"{WORKSPACE}/datasets/digits")
    )
    assert [version.version for version in listed.dataset_versions] == [2, 1]


async def test_versions_made_at_the_same_time_all_get_a_number(registry: Registry) -> None:
    file = await registry.upload("a", b"x")
    made = await asyncio.gather(
        *(registry.datasets.CreateDatasetVersion(dataset("many", file)) for _ in range(8))
    )
    assert sorted(version.version for version in made) == list(range(1, 9))


async def test_a_version_whose_content_is_missing_is_refused(registry: Registry) -> None:
    file = File(path="gone.csv", sha256="0" * 64, size_bytes=1)
    error = await refused(registry.datasets.CreateDatasetVersion(dataset("digits", file)))
    assert error.reason == "BLOB_MISSING"
    assert "gone.csv" in error.message


async def test_the_store_refuses_bytes_that_are_not_the_blob(registry: Registry) -> None:
    digest = hashlib.sha256(b"right").hexdigest()
    request = blobs_pb2.PrepareUploadsRequest(
        parent=WORKSPACE, blobs=[blobs_pb2.Blob(sha256=digest, size_bytes=5)]
    )
    upload = (await registry.blobs.PrepareUploads(request)).uploads[0]
    async with httpx.AsyncClient() as client:
        wrong = await client.put(upload.url, content=b"wrong", headers=dict(upload.headers))
        assert wrong.status_code == 400
        without = await client.put(upload.url, content=b"wrong")
        assert without.status_code >= 400
    assert (await registry.blobs.PrepareUploads(request)).uploads


async def test_the_store_refuses_more_bytes_than_were_announced(registry: Registry) -> None:
    digest = hashlib.sha256(b"much more").hexdigest()
    request = blobs_pb2.PrepareUploadsRequest(
        parent=WORKSPACE, blobs=[blobs_pb2.Blob(sha256=digest, size_bytes=1)]
    )
    upload = (await registry.blobs.PrepareUploads(request)).uploads[0]
    async with httpx.AsyncClient() as client:
        large = await client.put(upload.url, content=b"much more", headers=dict(upload.headers))
    assert large.status_code == 403
    assert (await registry.blobs.PrepareUploads(request)).uploads, "nothing was stored"


async def test_a_blob_is_uploaded_once_and_downloaded_by_url(registry: Registry) -> None:
    file = await registry.upload("a", b"content")
    request = blobs_pb2.PrepareUploadsRequest(parent=WORKSPACE, blobs=[blobs_pb2.Blob(sha256=file.sha256)])
    assert not (await registry.blobs.PrepareUploads(request)).uploads
    answer = await registry.blobs.PrepareDownloads(
        blobs_pb2.PrepareDownloadsRequest(parent=WORKSPACE, sha256=[file.sha256])
    )
    async with httpx.AsyncClient() as client:
        assert (await client.get(answer.downloads[0].url)).content == b"content"
    error = await refused(
        registry.blobs.PrepareDownloads(
            blobs_pb2.PrepareDownloadsRequest(parent=WORKSPACE, sha256=["1" * 64])
        )
    )
    assert error.reason == "BLOB_NOT_FOUND"


async def test_the_same_environment_is_not_registered_twice(registry: Registry) -> None:
    first = await registry.environments.CreateEnvironmentVersion(environment("e", "six==1.17.0"))
    again = await registry.environments.CreateEnvironmentVersion(environment("e", "six==1.17.0"))
    other = await registry.environments.CreateEnvironmentVersion(environment("e", "six>=1.16"))
    assert again == first
    assert other.version == 2


async def test_a_line_that_is_no_requirement_is_named(registry: Registry) -> None:
    error = await refused(
        registry.environments.CreateEnvironmentVersion(environment("e", "six", "not a requirement!"))
    )
    assert error.reason == "INVALID_REQUIREMENT"
    assert "not a requirement!" in error.message


async def test_only_a_node_may_lock_an_environment(registry: Registry) -> None:
    request = environments_pb2.LockEnvironmentVersionRequest(
        name=f"{WORKSPACE}/environments/e/versions/1", lock="six", digest="sha256:0"
    )
    assert (
        await refused(registry.environments.LockEnvironmentVersion(request))
    ).reason == "PERMISSION_DENIED"


async def test_a_model_from_uploaded_files(registry: Registry) -> None:
    file = await registry.upload("model.joblib", b"weights")
    request = models_pb2.CreateModelVersionRequest(parent=f"{WORKSPACE}/models/m", files=[file])
    model = await registry.models.CreateModelVersion(request)
    assert (model.version, model.size_bytes) == (1, 7)
    missing = models_pb2.GetModelVersionRequest(name=f"{WORKSPACE}/models/m/versions/7")
    assert (await refused(registry.models.GetModelVersion(missing))).reason == "MODEL_VERSION_NOT_FOUND"
