"""Snapshots and artifacts."""

import asyncio
import json
from typing import Any

from nats.js.api import ConsumerConfig, DeliverPolicy

from services.runs.tests.support import Client, Platform, refused
from stellwerk_platform.content import digest_of
from stellwerk_protos.common.v1.common_pb2 import File
from stellwerk_protos.runs.v1 import artifacts_pb2, snapshots_pb2

MISSING = File(path="gone.py", sha256="0" * 64, size_bytes=1)


async def test_a_snapshot_is_named_by_its_content_and_recorded_once(
    platform: Platform, client: Client
) -> None:
    workspace = await platform.workspace()
    files = [
        await platform.upload(workspace, "train.py", b"print(1)"),
        await platform.upload(workspace, "lib/a.py", b""),
    ]
    files[0].executable = True
    request = snapshots_pb2.CreateSnapshotRequest(parent=workspace, files=files)
    both = await asyncio.gather(
        client.snapshots.CreateSnapshot(request), client.snapshots.CreateSnapshot(request)
    )
    again = await client.snapshots.CreateSnapshot(
        snapshots_pb2.CreateSnapshotRequest(parent=workspace, files=files[::-1])
    )
    assert both[0] == both[1] == again
    assert again.name == f"{workspace}/snapshots/{digest_of(files)}"
    assert ([file.path for file in again.files], again.size_bytes) == (["lib/a.py", "train.py"], 8)
    assert await client.snapshots.GetSnapshot(snapshots_pb2.GetSnapshotRequest(name=again.name)) == again
    files[0].executable = False
    other = await client.snapshots.CreateSnapshot(
        snapshots_pb2.CreateSnapshotRequest(parent=workspace, files=files)
    )
    assert other.name != again.name


async def test_a_snapshot_that_cannot_be_is_refused(platform: Platform, client: Client) -> None:
    workspace = await platform.workspace()
    for path, reason in [("../x", "INVALID_PATH"), ("a//b", "INVALID_PATH"), ("a\nb", "INVALID_PATH")]:
        files = [File(path=path, sha256="0" * 64)]
        request = snapshots_pb2.CreateSnapshotRequest(parent=workspace, files=files)
        assert (await refused(client.snapshots.CreateSnapshot(request))).reason == reason
    error = await refused(
        client.snapshots.CreateSnapshot(
            snapshots_pb2.CreateSnapshotRequest(parent=workspace, files=[MISSING])
        )
    )
    assert (error.reason, error.metadata["path"]) == ("BLOB_MISSING", "gone.py")
    long = [File(path=f"{n:05d}" + "x" * 1_000, sha256="0" * 64) for n in range(5_000)]
    error = await refused(
        client.snapshots.CreateSnapshot(snapshots_pb2.CreateSnapshotRequest(parent=workspace, files=long))
    )
    assert error.reason == "SNAPSHOT_LIST_TOO_LARGE"


async def test_a_large_snapshot_comes_as_a_manifest_and_is_the_same_snapshot(
    platform: Platform, client: Client
) -> None:
    workspace = await platform.workspace()
    one = await platform.upload(workspace, "a/train.py", b"print(1)")
    link = File(path="b", link_target="a/train.py")

    async def by_manifest(files: list[File]) -> snapshots_pb2.Snapshot:
        body = snapshots_pb2.Manifest(files=files).SerializeToString()
        manifest = (await platform.upload(workspace, "manifest", body)).sha256
        return await client.snapshots.CreateSnapshot(
            snapshots_pb2.CreateSnapshotRequest(parent=workspace, manifest=manifest)
        )

    small = await by_manifest([link, one])
    assert (list(small.files), small.manifest, small.file_count) == ([one, link], "", 2)
    request = snapshots_pb2.CreateSnapshotRequest(parent=workspace, files=[one, link])
    assert await client.snapshots.CreateSnapshot(request) == small
    many = [File(path=f"{n:06d}", sha256=one.sha256, size_bytes=one.size_bytes) for n in range(30_000)]
    large = await by_manifest([*many, link, one])
    assert large.name == f"{workspace}/snapshots/{digest_of([*many, link, one])}"
    assert (len(large.files), large.file_count) == (0, 30_002)
    assert large.size_bytes == 30_001 * one.size_bytes
    assert await client.snapshots.GetSnapshot(snapshots_pb2.GetSnapshotRequest(name=large.name)) == large
    outside = File(path="c", link_target="../etc/passwd")
    assert (await refused(by_manifest([one, outside]))).reason == "INVALID_PATH"
    below = File(path="b/x", sha256=one.sha256)
    assert (await refused(by_manifest([one, link, below]))).reason == "INVALID_FILE"
    assert (await refused(by_manifest([one, MISSING]))).reason == "BLOB_MISSING"
    request = snapshots_pb2.CreateSnapshotRequest(parent=workspace, manifest=one.sha256)
    assert (await refused(client.snapshots.CreateSnapshot(request))).reason == "INVALID_MANIFEST"
    request.manifest = "1" * 64
    assert (await refused(client.snapshots.CreateSnapshot(request))).reason == "BLOB_MISSING"


async def listed(client: Client, run: str, path: str = "", page_size: int = 2) -> list[str]:
    """Paths of artifacts, read in pages."""
    paths, token = [], ""
    while True:
        answer = await client.artifacts.ListArtifacts(
            artifacts_pb2.ListArtifactsRequest(parent=run, path=path, page_size=page_size, page_token=token)
        )
        paths += [file.path for file in answer.files]
        token = answer.next_page_token
        if not token:
            return paths


async def test_artifacts_are_listed_by_folder_and_replaced_by_path(
    platform: Platform, client: Client
) -> None:
    workspace = await platform.workspace()
    run = (await platform.run(workspace)).name
    names = [
        "outputs/model/a.bin",
        "outputs/model/b.bin",
        "outputs/model.joblib",
        "outputs/models",
        "user.txt",
    ]
    files = [await platform.upload(workspace, name, name.encode()) for name in names]
    request = artifacts_pb2.CreateArtifactsRequest(parent=run, files=files[:3])
    await asyncio.gather(*(client.artifacts.CreateArtifacts(request) for _ in range(3)))
    await client.artifacts.CreateArtifacts(artifacts_pb2.CreateArtifactsRequest(parent=run, files=files[3:]))
    assert await listed(client, run) == sorted(names)
    assert await listed(client, run, "outputs/model") == ["outputs/model/a.bin", "outputs/model/b.bin"]
    assert await listed(client, run, "outputs/model.joblib") == ["outputs/model.joblib"]
    assert await listed(client, run, "output") == []
    newer = await platform.upload(workspace, "user.txt", b"newer")
    await client.artifacts.CreateArtifacts(artifacts_pb2.CreateArtifactsRequest(parent=run, files=[newer]))
    answer = await client.artifacts.ListArtifacts(
        artifacts_pb2.ListArtifactsRequest(parent=run, path="user.txt")
    )
    assert list(answer.files) == [newer]
    # One journal event a call that changed something, in order; played back they give the listing.
    events = await journal(platform, workspace)
    assert [event["data"]["revision"] for event in events] == [1, 2, 3]
    replayed = {f["path"]: f["sha256"] for event in events for f in event["data"]["resource"]["files"]}
    assert replayed == {file.path: file.sha256 for file in [*files[:4], newer]}


async def journal(platform: Platform, workspace: str) -> list[dict[str, Any]]:
    """The first three events about artifacts in a workspace."""
    names = platform.bus.names
    subject = names.subject("journal", workspace.split("/")[1], "runs", "artifact_list", "recorded")
    subscription = await platform.bus.jetstream.subscribe(
        subject,
        stream=names.stream("JOURNAL"),
        config=ConsumerConfig(deliver_policy=DeliverPolicy.ALL),
    )
    try:
        return [json.loads((await subscription.next_msg(60)).data) for _ in range(3)]
    finally:
        await subscription.unsubscribe()


async def test_artifacts_that_cannot_be_are_refused(platform: Platform, client: Client) -> None:
    workspace = await platform.workspace()
    run = (await platform.run(workspace)).name
    for request, reason in [
        (artifacts_pb2.CreateArtifactsRequest(parent=run, files=[MISSING]), "BLOB_MISSING"),
        (artifacts_pb2.CreateArtifactsRequest(parent=run, files=[MISSING] * 1_001), "TOO_MANY_FILES"),
        (artifacts_pb2.CreateArtifactsRequest(parent=run + "x", files=[MISSING]), "RUN_NOT_FOUND"),
    ]:
        assert (await refused(client.artifacts.CreateArtifacts(request))).reason == reason
