"""Snapshots with hostile paths, blobs that are not what they say, outputs of any shape, a full store."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stellwerk_agent import outputs, sdk
from stellwerk_agent.blobs import Blobs
from stellwerk_agent.failure import StepFailed
from stellwerk_agent.files import check_paths, copy, protect, remove
from stellwerk_agent.snapshots import Snapshots
from stellwerk_protos.common.v1.common_pb2 import File
from stellwerk_protos.registry.v1 import blobs_pb2
from stellwerk_protos.runs.v1 import snapshots_pb2

Answer = Callable[[httpx.Request], httpx.Response]


class Registry:
    """Stands for the registry's blob service: these tests need a store that lies and a store that is full."""

    def __init__(self) -> None:
        self.stored: set[str] = set()
        self.questions = 0

    async def PreparePart(self, request: object, timeout: float) -> None:
        raise AssertionError("nothing here is large")

    CompleteUpload = CreatePack = PreparePart

    async def PrepareUploads(
        self, request: blobs_pb2.PrepareUploadsRequest, timeout: float
    ) -> blobs_pb2.PrepareUploadsResponse:
        missing = [blob.sha256 for blob in request.blobs if blob.sha256 not in self.stored]
        uploads = [blobs_pb2.Upload(sha256=digest, url=f"http://store/{digest}") for digest in missing]
        return blobs_pb2.PrepareUploadsResponse(uploads=uploads)

    async def PrepareDownloads(
        self, request: blobs_pb2.PrepareDownloadsRequest, timeout: float
    ) -> blobs_pb2.PrepareDownloadsResponse:
        self.questions += 1
        downloads = [blobs_pb2.Download(sha256=d, url=f"http://store/{d}") for d in request.sha256]
        return blobs_pb2.PrepareDownloadsResponse(downloads=downloads)


def store(tmp_path: Path, answer: Answer, patience_seconds: float = 0.0) -> Blobs:
    client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    return Blobs(tmp_path / "cache", Registry(), client, patience_seconds)  # type: ignore[arg-type]


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def file(path: str, content: bytes, *, executable: bool = False) -> File:
    return File(path=path, sha256=digest_of(content), size_bytes=len(content), executable=executable)


@pytest.mark.parametrize(
    "path", ["../x", "/etc/passwd", "a/../../x", "a//b", "./a", "", "a/", "a\0b", "..", "a/./b"]
)
def test_a_path_that_leaves_its_folder_is_refused(path: str) -> None:
    with pytest.raises(StepFailed) as caught:
        check_paths([File(path=path)])
    assert caught.value.reason.code == "UNSAFE_PATH"


@given(st.lists(st.text(st.sampled_from("./ab"), max_size=8), max_size=5))
def test_accepted_paths_stay_below_the_root(paths: list[str]) -> None:
    try:
        check_paths([File(path=path) for path in paths])
    except StepFailed:
        return
    root = Path("/root/folder")
    assert all(Path(os.path.normpath(root / path)).is_relative_to(root) for path in paths)


def test_a_file_that_is_also_a_folder_is_refused() -> None:
    with pytest.raises(StepFailed, match="both a file and a folder"):
        check_paths([File(path="a"), File(path="a/b")])


async def test_files_come_once_verified_and_with_their_modes(tmp_path: Path) -> None:
    content, asked = b"#!/bin/sh\n", []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        # The first answer is damaged on its way.
        return httpx.Response(200, content=b"other" if len(asked) == 1 else content)

    blobs = store(tmp_path, answer)
    files = [file("bin/go", content, executable=True), file("copy", content)]
    assert await blobs.fetch("demo", files, tmp_path / "one", writable=True) == 1
    assert await blobs.fetch("demo", files, tmp_path / "two", writable=False) == 0
    assert len(asked) == 2
    assert (tmp_path / "one/bin/go").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "two/copy").stat().st_mode & 0o777 == 0o444
    (tmp_path / "one/copy").write_bytes(b"changed")
    assert (tmp_path / "two/copy").read_bytes() == content, "nothing is shared with the cache"


async def test_one_question_brings_many_files_and_none_is_asked_for_what_is_there(tmp_path: Path) -> None:
    contents = {digest_of(b"%d" % number): b"%d" % number for number in range(30)}
    blobs = store(tmp_path, lambda request: httpx.Response(200, content=contents[request.url.path[1:]]))
    files = [file(content.decode(), content) for content in contents.values()]
    assert await blobs.fetch("demo", files, tmp_path / "one", writable=True) == 30
    assert await blobs.fetch("demo", files, tmp_path / "two", writable=True) == 0
    assert blobs._registry.questions == 1  # type: ignore[attr-defined]  # the stand-in's own


async def test_links_are_made_again_and_never_lead_outside(tmp_path: Path) -> None:
    blobs = store(tmp_path, lambda _: httpx.Response(200, content=b"x"))
    files = [
        file("data/real.txt", b"x"),
        File(path="links/deep/alias", link_target="data/real.txt"),
        File(path="folder", link_target="data"),
        File(path="broken", link_target="nothing/here"),
    ]
    await blobs.fetch("demo", files, tmp_path / "work", writable=False)
    assert (tmp_path / "work/links/deep/alias").read_bytes() == b"x"
    assert os.readlink(tmp_path / "work/links/deep/alias") == "../../data/real.txt"
    assert (tmp_path / "work/folder/real.txt").exists()
    protect(tmp_path / "work")
    remove(tmp_path / "work")
    assert not (tmp_path / "work").exists()
    for target in ("../outside", "/etc/passwd", "a/../../b", "a//b"):
        with pytest.raises(StepFailed) as caught:
            check_paths([File(path="link", link_target=target)])
        assert caught.value.reason.code == "UNSAFE_PATH"
    with pytest.raises(StepFailed, match="both a file and a folder"):
        check_paths([File(path="folder", link_target="data"), file("folder/x", b"x")])


async def test_a_large_snapshot_is_read_from_its_manifest(tmp_path: Path) -> None:
    listed = [file("train.py", b"print()"), File(path="alias.py", link_target="train.py")]
    content = snapshots_pb2.Manifest(files=listed).SerializeToString()
    name = f"workspaces/demo/snapshots/{'0' * 64}"

    class Stub:
        asked = 0

        async def GetSnapshot(
            self, request: snapshots_pb2.GetSnapshotRequest, timeout: float
        ) -> snapshots_pb2.Snapshot:
            self.asked += 1
            return snapshots_pb2.Snapshot(name=request.name, manifest=digest_of(content))

    stub = Stub()
    blobs = store(tmp_path, lambda _: httpx.Response(200, content=content))
    snapshots = Snapshots(stub, blobs)  # type: ignore[arg-type]  # the one method that is called
    assert await snapshots.files(name) == listed
    assert await snapshots.files(name) == listed
    assert stub.asked == 1


def test_a_protected_folder_can_be_removed(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x")
    copy(tmp_path / "source", tmp_path / "inputs/a/b", 0o644)
    protect(tmp_path / "inputs")
    assert (tmp_path / "inputs/a").stat().st_mode & 0o222 == 0
    remove(tmp_path / "inputs")
    remove(tmp_path / "inputs")
    assert not (tmp_path / "inputs").exists()


def test_a_folder_that_the_command_closed_can_be_removed(tmp_path: Path) -> None:
    closed = tmp_path / "work/outputs/closed"
    (closed / "deeper").mkdir(parents=True)
    (closed / "deeper/file").write_bytes(b"x")
    (closed / "outside").symlink_to(tmp_path)
    (closed / "deeper").chmod(0)
    closed.chmod(0)
    # Root may do all, so this says more where the tests run as somebody else.
    remove(tmp_path / "work")
    assert list(tmp_path.iterdir()) == []


def test_outputs_of_any_shape_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "work/outputs"
    (folder / "deep/er").mkdir(parents=True)
    (folder / "deep/er/größe.txt").write_bytes(b"1")
    (folder / "empty").write_bytes(b"")
    (folder / "inside").symlink_to("deep/er/größe.txt")
    (folder / "outside").symlink_to("/etc/passwd")
    (folder / "broken").symlink_to("nothing")
    os.mkfifo(folder / "pipe")
    found = outputs.scan(tmp_path / "work")
    assert [f.name for f in found] == ["outputs/deep/er/größe.txt", "outputs/empty", "outputs/inside"]
    assert outputs.scan(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (507, "", "BLOB_STORE_FULL"),
        (500, "no space left on device", "BLOB_STORE_FULL"),
        (503, "slow down", "BLOB_STORE_UNAVAILABLE"),
        (400, "bad digest", "OUTPUT_COLLECTION_FAILED"),
    ],
)
async def test_a_store_that_keeps_refusing_is_given_up(
    tmp_path: Path, status: int, body: str, code: str
) -> None:
    blobs = store(tmp_path, lambda _: httpx.Response(status, text=body))
    path = tmp_path / "output"
    path.write_bytes(b"result")
    with pytest.raises(StepFailed) as caught:
        await blobs.upload("demo", {digest_of(b"result"): path})
    assert caught.value.reason.code == code
    assert caught.value.reason.cure


async def test_a_store_that_takes_nothing_is_given_up_and_what_is_missing_is_named(tmp_path: Path) -> None:
    def nobody(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("nobody there")

    client = httpx.AsyncClient(transport=httpx.MockTransport(nobody))
    blobs = Blobs(tmp_path / "cache", Registry(), client, silence_seconds=0.3)  # type: ignore[arg-type]
    path = tmp_path / "model.bin"
    path.write_bytes(b"result")
    with pytest.raises(StepFailed) as caught:
        await blobs.upload("demo", {digest_of(b"result"): path})
    assert caught.value.reason.code == "OUTPUTS_NOT_COLLECTED"
    assert "model.bin" in caught.value.reason.message


async def test_a_store_that_comes_back_gets_everything(tmp_path: Path) -> None:
    answers: list[httpx.Response | Exception] = [
        httpx.ConnectError("nobody there"),
        httpx.Response(503),
        httpx.Response(200),
    ]

    def answer(request: httpx.Request) -> httpx.Response:
        found = answers.pop(0)
        if isinstance(found, httpx.Response):
            return found
        raise found

    path = tmp_path / "output"
    path.write_bytes(b"result")
    blobs = store(tmp_path, answer, patience_seconds=60)
    assert (await blobs.upload("demo", {digest_of(b"result"): path})).sent == 1
    assert not answers


def test_the_command_sees_the_sdk_and_nothing_else(tmp_path: Path) -> None:
    folder = sdk.expose(tmp_path)
    assert sdk.expose(tmp_path) == folder
    assert [path.name for path in folder.iterdir()] == ["stellwerk"]
