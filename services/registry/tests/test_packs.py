"""Many small blobs as one object: made, read by those who know packs and those who don't, removed again."""

import asyncio
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.registry.tests.support import WORKSPACE, Registry
from services.registry.tests.test_blobs import Blobs, aged, blobs
from services.registry.tests.test_uploads import connected, refusal
from stellwerk.pack import pack as described
from stellwerk_platform.errors import InvalidArgument
from stellwerk_protos.registry.v1 import blobs_pb2 as pb
from stellwerk_registry.packs.store import Packs

__all__ = ["blobs"]


def blob(content: bytes, size_bytes: int | None = None) -> pb.Blob:
    return pb.Blob(
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content) if size_bytes is None else size_bytes,
    )


async def packed(registry: Registry, contents: Sequence[bytes], *, named: Sequence[pb.Blob] = ()) -> None:
    """A pack as a client makes it."""
    pack = await registry.upload("pack", b"".join(contents))
    members = named or [blob(content) for content in contents]
    await registry.blobs.CreatePack(pb.CreatePackRequest(parent=WORKSPACE, sha256=pack.sha256, blobs=members))


async def test_a_folder_of_small_files_travels_in_few_requests(registry: Registry, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for number in range(300):
        place = source / f"d{number % 7}" / f"{number}.txt"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"%d" % number + os.urandom(500))
    (source / "empty").touch()
    (source / "twice.txt").write_bytes((source / "d0" / "0.txt").read_bytes())
    (source / "run.sh").write_text("#!/bin/sh\n")
    (source / "run.sh").chmod(0o755)
    (source / "larger.bin").write_bytes(os.urandom(300_000))
    async with connected(registry) as (core, requests):
        files = await core.upload(WORKSPACE, source)
        assert len(requests) == 2
        await core.upload(WORKSPACE, source)
        assert len(requests) == 2, "what is there does not travel again"
        requests.clear()
        await core.download(WORKSPACE, files, target)
        assert len(requests) == 2
        requests.clear()
        changed = target / "d0" / "0.txt"
        changed.unlink()
        await core.download(WORKSPACE, files, target)
        assert [request.headers["range"] for request in requests], "a part of the pack is enough"
    found = {(file.path, file.sha256, file.executable) for file in described(target)}
    assert found == {(file.path, file.sha256, file.executable) for file in described(source)}


async def test_who_knows_no_packs_gets_an_object(registry: Registry) -> None:
    contents = [b"one" + os.urandom(8), b"", b"three" + os.urandom(8)]
    await packed(registry, contents)
    digests = [blob(content).sha256 for content in contents]
    for _ in range(2):
        answer = await registry.blobs.PrepareDownloads(
            pb.PrepareDownloadsRequest(parent=WORKSPACE, sha256=digests)
        )
        async with httpx.AsyncClient() as http:
            found = [(await http.get(item.url)).content for item in answer.downloads]
        assert found == contents
    known = await registry.blobs.PrepareDownloads(
        pb.PrepareDownloadsRequest(parent=WORKSPACE, sha256=digests, packs=True)
    )
    assert not any(item.packed for item in known.downloads)


@pytest.mark.parametrize(
    ("named", "reason"),
    [
        ([blob(b"aaa"), blob(b"xxx")], "PACK_MISMATCH"),
        ([blob(b"aaa")], "PACK_MISMATCH"),
        ([blob(b"bbb"), blob(b"aaa")], "PACK_MISMATCH"),
        ([blob(b"aaa", -1)], "INVALID_PACK"),
        ([blob(b"aaa", 1 << 40)], "INVALID_PACK"),
        ([pb.Blob(sha256="x", size_bytes=3)], "INVALID_DIGEST"),
    ],
)
async def test_a_pack_holds_what_it_says(registry: Registry, named: list[pb.Blob], reason: str) -> None:
    assert await refusal(packed(registry, [b"aaa", b"bbb"], named=named)) == reason


async def test_a_pack_that_is_not_there_is_none(registry: Registry) -> None:
    request = pb.CreatePackRequest(parent=WORKSPACE, sha256="0" * 64, blobs=[blob(b"aaa")])
    assert await refusal(registry.blobs.CreatePack(request)) == "BLOB_MISSING"
    request.ClearField("blobs")
    assert await refusal(registry.blobs.CreatePack(request)) == "INVALID_PACK"


async def test_a_pack_goes_with_the_last_that_lies_in_it(blobs: Blobs) -> None:
    packs = Packs(blobs.index, blobs.places)
    contents = [b"first", b"second"]
    pack = await blobs.put(b"".join(contents))
    await packs.create("demo", pack, [blob(content) for content in contents])
    first, second = (blob(content).sha256 for content in contents)
    assert await blobs.index.missing("demo", [first, second]) == []
    assert await blobs.index.used_bytes("demo") == 11, "nothing counts twice"
    assert await blobs.index.count("demo") == (2, 11)
    await aged(blobs)
    assert await blobs.release(pack) == (0, []), "it holds something"
    assert await blobs.release(first) == (5, [])
    assert await blobs.objects.size("demo", pack) == 11
    assert await blobs.index.missing("demo", [first, second]) == [first]
    await aged(blobs)
    assert await blobs.release(second) == (6, [])
    assert await blobs.objects.size("demo", pack) is None
    assert await blobs.index.missing("demo", [first, second, pack]) == [first, second, pack]


async def test_two_who_bring_the_same_in_other_packs_leave_one(blobs: Blobs) -> None:
    packs = Packs(blobs.index, blobs.places)
    one, other = await asyncio.gather(blobs.put(b"ab"), blobs.put(b"ba"))
    members: list[Any] = [blob(b"a"), blob(b"b")]
    await packs.create("demo", one, members)
    await packs.create("demo", other, members[::-1])
    assert await blobs.objects.size("demo", one) == 2
    assert await blobs.objects.size("demo", other) is None


async def test_a_blob_that_a_run_may_need_is_not_taken_for_a_pack(blobs: Blobs) -> None:
    packs = Packs(blobs.index, blobs.places)
    contents = [b"ab", b"cd", b"a", b"b"]
    digests = [await blobs.put(content) for content in contents]
    # As it is asked for before it becomes an output: only `runs` knows of that.
    assert await blobs.index.missing("demo", digests) == []
    with pytest.raises(InvalidArgument):
        await packs.create("demo", digests[0], [blob(b"ab")])
    await packs.create("demo", digests[0], [blob(b"a"), blob(b"b")])
    await packs.create("demo", digests[1], [blob(b"c"), blob(b"d")])
    assert await blobs.index.used_bytes("demo") == 8, "it counts as before"
    await aged(blobs)
    await blobs.release(blob(b"c").sha256, blob(b"d").sha256)
    assert [await blobs.objects.size("demo", digest) for digest in digests[:2]] == [2, 2]
