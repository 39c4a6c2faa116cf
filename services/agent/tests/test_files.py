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
from stellwerk_protos.common.v1.common_pb2 import File
from stellwerk_protos.registry.v1 import blobs_pb2

Answer = Callable[[httpx.Request], httpx.Response]


class Registry:
    """Stands for the registry's blob service: these tests need a store that lies and a store that is full."""

    def __init__(self) -> None:
        self.stored: set[str] = set()

    async def PrepareUploads(
        self, request: blobs_pb2.PrepareUploadsRequest, timeout: float
    ) -> blobs_pb2.PrepareUploadsResponse:
        missing = [blob.sha256 for blob in request.blobs if blob.sha256 not in self.stored]
        uploads = [blobs_pb2.Upload(sha256=digest, url=f"http://store/{digest}") for digest in missing]
        return blobs_pb2.PrepareUploadsResponse(uploads=uploads)

    async def PrepareDownloads(
        self, request: blobs_pb2.PrepareDownloadsRequest, timeout: float
    ) -> blobs_pb2.PrepareDownloadsResponse:
        downloads = [blobs_pb2.Download(sha256=d, url=f"http://store/{d}") for d in request.sha256]
        return blobs_pb2.PrepareDownloadsResponse(downloads=downloads)


def store(tmp_path: Path, answer: Answer, patience_seconds: float = 0.0) -> Blobs:
    client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    return Blobs(tmp_path / "cache", Registry(), client, patience_seconds)  # type: ignore[arg-type]


def file(path: str, content: bytes, *, executable: bool = False) -> File:
    digest = hashlib.sha256(content).hexdigest()
    return File(path=path, sha256=digest, size_bytes=len(content), executable=executable)


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
    assert [f.path for f, _ in found] == ["outputs/empty", "outputs/inside", "outputs/deep/er/größe.txt"]
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
        await blobs.upload("demo", [(file("outputs/output", b"result"), path)])
    assert caught.value.reason.code == code
    assert caught.value.reason.cure


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
    assert await blobs.upload("demo", [(file("outputs/output", b"result"), path)]) == 1
    assert not answers


def test_the_command_sees_the_sdk_and_nothing_else(tmp_path: Path) -> None:
    folder = sdk.expose(tmp_path)
    assert sdk.expose(tmp_path) == folder
    assert [path.name for path in folder.iterdir()] == ["stellwerk"]
