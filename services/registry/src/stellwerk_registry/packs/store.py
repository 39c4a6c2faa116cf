"""Packs in the object store: checked when they are made, opened for callers who know none (decision 053)."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from stellwerk_platform.errors import FailedPrecondition
from stellwerk_protos.registry.v1 import blobs_pb2 as pb
from stellwerk_registry.blobs.domain import datastore_of, is_pack
from stellwerk_registry.blobs.store import BlobIndex
from stellwerk_registry.datastores.places import Place, Places, Slots
from stellwerk_registry.packs import domain

_CONCURRENT = 16
# Packs that are read whole at a time, of up to 16 MiB each.
_READING = 4


class Packs:
    """The packs of all workspaces."""

    def __init__(self, index: BlobIndex, places: Places) -> None:
        self._index = index
        self._places = places
        self._slots, self._reading = Slots(_CONCURRENT), Slots(_READING)

    async def create(self, workspace: str, pack: str, blobs: Sequence[pb.Blob]) -> None:
        """Makes what lies in a pack present; raises `FailedPrecondition`, `InvalidArgument`."""
        domain.check(pack, blobs)
        before = (await self._index.documents(workspace, [pack])).get(pack, {})
        if await self._index.missing(workspace, [pack]):
            raise FailedPrecondition(
                "BLOB_MISSING", f"The pack {pack} has not been uploaded.", "Upload it first."
            )
        document = (await self._index.documents(workspace, [pack]))[pack]
        place = await self._place(workspace, document)
        size_bytes = await place.size(pack)
        if size_bytes is None or size_bytes > domain.MOST_BYTES:
            raise domain.invalid_size(size_bytes or 0)
        async with self._reading.at(place):
            content = await place.store.content(place.prefix, pack, domain.MOST_BYTES)
            found = await asyncio.to_thread(domain.places, content, blobs)
        # What was there before may be an output or a part of a snapshot: only `runs` knows.
        is_only_pack = is_pack(before) or not before.get("present")
        await self._index.pack(workspace, pack, found, is_only_pack=is_only_pack)

    async def downloads(self, workspace: str, digests: Sequence[str], *, packs: bool) -> list[pb.Download]:
        """Where to get blobs that are there; those in packs as such only for callers who can take them."""
        known = await self._index.documents(workspace, digests)
        if not packs:
            packed = [digest for digest in digests if "pack" in known[digest]]
            await asyncio.gather(*(self._unpack(workspace, digest, known[digest]) for digest in packed))
        urls: dict[str, str] = {}
        answers = []
        for digest in digests:
            document = known[digest]
            place = await self._place(workspace, document)
            if packs and "pack" in document:
                pack = document["pack"].rpartition("/")[2]
                urls[pack] = urls.get(pack) or place.download_url(pack)
                answers.append(
                    pb.Download(
                        sha256=digest,
                        url=urls[pack],
                        packed=True,
                        offset=document["offset"],
                        size_bytes=document["size"],
                    )
                )
            else:
                answers.append(pb.Download(sha256=digest, url=place.download_url(digest)))
        return answers

    async def _unpack(self, workspace: str, digest: str, document: Mapping[str, Any]) -> None:
        place = await self._place(workspace, document)
        start, size_bytes = int(document["offset"]), int(document["size"])
        pack = document["pack"].rpartition("/")[2]
        async with self._slots.at(place):
            content = b""
            if size_bytes:
                content = await place.store.content(place.prefix, pack, size_bytes, (start, size_bytes))
            await place.store.put(place.prefix, digest, content)
        await self._index.unpacked(workspace, digest)

    async def _place(self, workspace: str, document: Mapping[str, Any]) -> Place:
        return await self._places.of(workspace, datastore_of(document))
