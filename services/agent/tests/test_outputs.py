"""Outputs that change while they are collected, with names of any kind, and very many of them."""

import asyncio
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from stellwerk_agent import outputs
from stellwerk_agent.blobs import Blobs
from stellwerk_agent.failure import StepFailed
from stellwerk_agent.outputs import Outputs
from stellwerk_protos.common.v1 import common_pb2
from stellwerk_protos.registry.v1 import blobs_pb2
from stellwerk_protos.runs.v1 import artifacts_pb2

RUN = "workspaces/demo/runs/r"


class Platform:
    """Stands for registry, blob store and runs: a test changes files between their answers."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.artifacts: dict[str, str] = {}
        self.calls = 0
        self.while_uploading: Callable[[], object] = lambda: None

    async def PreparePart(self, request: object, timeout: float) -> None:
        raise AssertionError("nothing here is large")

    CompleteUpload = PreparePart

    async def CreatePack(
        self, request: blobs_pb2.CreatePackRequest, timeout: float
    ) -> blobs_pb2.CreatePackResponse:
        self.calls += 1
        content, offset = self.blobs.pop(request.sha256), 0
        for blob in request.blobs:
            self.blobs[blob.sha256] = content[offset : offset + blob.size_bytes]
            offset += blob.size_bytes
        return blobs_pb2.CreatePackResponse()

    async def PrepareUploads(
        self, request: blobs_pb2.PrepareUploadsRequest, timeout: float
    ) -> blobs_pb2.PrepareUploadsResponse:
        self.calls += 1
        assert len(request.blobs) <= 1_000
        missing = [blob.sha256 for blob in request.blobs if blob.sha256 not in self.blobs]
        return blobs_pb2.PrepareUploadsResponse(
            uploads=[blobs_pb2.Upload(sha256=digest, url=f"http://store/{digest}") for digest in missing]
        )

    async def CreateArtifacts(
        self, request: artifacts_pb2.CreateArtifactsRequest, timeout: float
    ) -> artifacts_pb2.CreateArtifactsResponse:
        self.calls += 1
        assert len(request.files) <= 1_000
        assert all(file.sha256 in self.blobs for file in request.files)
        self.artifacts.update({file.path: file.sha256 for file in request.files})
        return artifacts_pb2.CreateArtifactsResponse()

    def put(self, request: httpx.Request) -> httpx.Response:
        self.while_uploading()
        digest, content = request.url.path[1:], request.read()
        if hashlib.sha256(content).hexdigest() != digest:
            return httpx.Response(400, text="bad digest")
        self.blobs[digest] = content
        return httpx.Response(200)

    def content(self) -> dict[str, bytes]:
        """What a download of the run gives."""
        return {path: self.blobs[digest] for path, digest in self.artifacts.items()}


@pytest.fixture
def platform() -> Platform:
    return Platform()


@pytest.fixture
def collected(platform: Platform, tmp_path: Path) -> Outputs:
    async def answer(request: httpx.Request) -> httpx.Response:
        await request.aread()
        return platform.put(request)

    client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    blobs = Blobs(tmp_path / "cache", platform, client, 0.0)  # type: ignore[arg-type]
    (tmp_path / "work/outputs").mkdir(parents=True)
    return Outputs(tmp_path / "work", RUN, blobs, platform)  # type: ignore[arg-type]


async def test_what_has_settled_travels_while_the_run_goes_on(
    platform: Platform, collected: Outputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "_SCAN_SECONDS", 0.01)
    monkeypatch.setattr(outputs, "_SETTLED_SECONDS", 0.2)
    settled, growing = tmp_path / "work/outputs/settled", tmp_path / "work/outputs/growing"
    fresh, later = tmp_path / "fresh", time.time() + 3_600
    settled.write_bytes(b"done")
    watching = asyncio.create_task(collected.watch())
    async with asyncio.timeout(60):
        while "outputs/settled" not in platform.artifacts:
            # Written to again and again, it never settles; not on a machine that is slow to write either.
            fresh.write_bytes(os.urandom(8))
            os.utime(fresh, (later, later))
            fresh.replace(growing)
            await asyncio.sleep(0.01)
    assert "outputs/growing" not in platform.artifacts
    settled.write_bytes(b"done again")
    async with asyncio.timeout(60):
        while platform.content()["outputs/settled"] != b"done again":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    collected.finish()
    await watching
    assert await collected.collect() == "2 files, 3 new"
    assert platform.content() == {"outputs/settled": b"done again", "outputs/growing": growing.read_bytes()}
    calls = platform.calls
    assert await collected.collect() == "2 files, 3 new"
    assert platform.calls == calls, "what is recorded needs no call"


async def test_a_file_that_changes_on_its_way_is_collected_as_it_is_in_the_end(
    platform: Platform, collected: Outputs, tmp_path: Path
) -> None:
    path = tmp_path / "work/outputs/model"
    path.write_bytes(b"half")
    changes = [b"whole and longer", b"final"]

    def change() -> None:
        if changes:
            path.write_bytes(changes.pop(0))

    platform.while_uploading = change
    await collected.collect()
    assert platform.content() == {"outputs/model": b"final"}


async def test_a_file_that_never_rests_is_named(
    platform: Platform, collected: Outputs, tmp_path: Path
) -> None:
    path = tmp_path / "work/outputs/model"
    path.write_bytes(b"x")
    platform.while_uploading = lambda: path.write_bytes(os.urandom(9))
    with pytest.raises(StepFailed, match="outputs/model") as caught:
        await collected.collect()
    assert caught.value.reason.code == "OUTPUT_COLLECTION_FAILED"


async def test_names_of_any_kind_stay_apart(platform: Platform, collected: Outputs, tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path / "work/outputs")
    names = (b"caf\xe9", b"caf\xe8", b"Model", b"model", "größe 模型".encode(), b"a\\b", b"tab\there", b"...")
    for name in names:
        Path(os.fsdecode(os.path.join(folder, name))).write_bytes(name)
    await collected.collect()
    assert sorted(platform.content().values()) == sorted(names)
    assert {
        "outputs/Model",
        "outputs/model",
        "outputs/größe 模型",
        "outputs/...",
    } <= platform.content().keys()


async def test_ten_thousand_small_files_take_few_calls(
    platform: Platform, collected: Outputs, tmp_path: Path
) -> None:
    for number in range(10_000):
        (tmp_path / f"work/outputs/{number}").write_bytes(b"%d" % (number % 5_000))
    assert await collected.collect() == "10000 files, 5000 new"
    assert len(platform.artifacts) == 10_000
    # Ten to ask, ten to record, and two for each pack.
    assert platform.calls <= 40


async def test_a_small_file_that_is_not_what_it_seems_holds_up_no_other(
    platform: Platform, collected: Outputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        (tmp_path / f"work/outputs/{number}").write_bytes(b"%d" % number)
    describe = outputs._describe

    def wrong(batch: list[outputs.Found]) -> list[tuple[outputs.Found, common_pb2.File]]:
        # As if it had been written to in a way that leaves no trace.
        found = describe(batch)
        for _, file in found:
            if file.path == "outputs/7":
                file.sha256 = hashlib.sha256(b"other").hexdigest()
        return found

    monkeypatch.setattr(outputs, "_describe", wrong)
    with pytest.raises(StepFailed, match="refuses the outputs"):
        await collected.collect()
    assert len(platform.blobs) == 19
