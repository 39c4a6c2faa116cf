"""Many small blobs in one request, to the store and from it: an object each would cost a request each.

A pack is an object that holds small blobs one after the other (`registry.BlobService.CreatePack`).
"""

import asyncio
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import httpx

from stellwerk.blob_store import Calls, Changed, Corrupt, Meter, Refused
from stellwerk_protos.registry.v1 import blobs_pb2

# Larger ones travel by themselves, and so do fewer.
SMALL_BYTES = 256 * 1024
FEWEST = 8
_PACK_BYTES = 4 * 1024 * 1024
_PACK_BLOBS = 1_000


class Sized(Protocol):
    """A local file with the digest that its content should have."""

    @property
    def sha256(self) -> str: ...
    @property
    def source(self) -> Path: ...
    @property
    def size_bytes(self) -> int: ...


@dataclass(frozen=True)
class Member:
    """The plainest one."""

    sha256: str
    source: Path
    size_bytes: int


F = TypeVar("F", bound=Sized)


def split(files: Sequence[F]) -> tuple[list[list[F]], list[F]]:
    """The files that go into packs, pack by pack, and those that travel by themselves."""
    small = [file for file in files if file.size_bytes <= SMALL_BYTES]
    if len(small) < FEWEST:
        return [], list(files)
    return list(_filled(small)), [file for file in files if file.size_bytes > SMALL_BYTES]


def _filled(files: Iterable[F]) -> Iterator[list[F]]:
    pack: list[F] = []
    size_bytes = 0
    for file in files:
        if pack and (len(pack) == _PACK_BLOBS or size_bytes + file.size_bytes > _PACK_BYTES):
            yield pack
            pack, size_bytes = [], 0
        pack.append(file)
        size_bytes += file.size_bytes
    if pack:
        yield pack


async def put(
    http: httpx.AsyncClient, calls: Calls, workspace: str, files: Sequence[Sized], meter: Meter
) -> None:
    """Brings small files to the store as one pack.

    Raises `Refused`, `Changed` with the path of a file that is not any more what was hashed, `OSError`,
    `httpx.TransportError` and what the calls raise.
    """
    content = await asyncio.to_thread(_content, files)
    sha256 = await asyncio.to_thread(lambda: hashlib.sha256(content).hexdigest())
    wanted = blobs_pb2.PrepareUploadsRequest(
        parent=workspace, blobs=[blobs_pb2.Blob(sha256=sha256, size_bytes=len(content))]
    )
    for offer in (await calls.prepare_uploads(wanted)).uploads:
        headers = {**offer.headers, "content-length": str(len(content))}
        response = await http.put(offer.url, content=content, headers=headers)
        if not response.is_success:
            raise Refused(response)
    members = [blobs_pb2.Blob(sha256=file.sha256, size_bytes=file.size_bytes) for file in files]
    await calls.create_pack(blobs_pb2.CreatePackRequest(parent=workspace, sha256=sha256, blobs=members))
    meter.reach(len(content))


def _content(files: Sequence[Sized]) -> bytes:
    parts = []
    for file in files:
        part = file.source.read_bytes()
        if len(part) != file.size_bytes or hashlib.sha256(part).hexdigest() != file.sha256:
            raise Changed(str(file.source))
        parts.append(part)
    return b"".join(parts)


def by_pack(downloads: Sequence[blobs_pb2.Download]) -> list[list[blobs_pb2.Download]]:
    """The downloads of each pack together, in the order of the pack."""
    packs: dict[str, list[blobs_pb2.Download]] = {}
    for download in downloads:
        packs.setdefault(download.url, []).append(download)
    return [sorted(members, key=lambda member: member.offset) for members in packs.values()]


async def get(http: httpx.AsyncClient, members: Sequence[blobs_pb2.Download]) -> dict[str, bytes]:
    """The contents, by digest, of blobs that lie in one pack, verified.

    Raises `Refused`, `Corrupt` and `httpx.TransportError`.
    """
    start = members[0].offset
    end = max(member.offset + member.size_bytes for member in members)
    content = b""
    if end > start:
        response = await http.get(members[0].url, headers={"range": f"bytes={start}-{end - 1}"})
        if not response.is_success:
            raise Refused(response)
        # A store that knows no ranges sends all of it.
        partial = response.status_code == httpx.codes.PARTIAL_CONTENT
        content = response.content if partial else response.content[start:end]
    return await asyncio.to_thread(_cut, content, start, members)


def _cut(content: bytes, start: int, members: Sequence[blobs_pb2.Download]) -> dict[str, bytes]:
    found = {}
    for member in members:
        at = member.offset - start
        piece = content[at : at + member.size_bytes]
        if hashlib.sha256(piece).hexdigest() != member.sha256:
            raise Corrupt(member.sha256)
        found[member.sha256] = piece
    return found
