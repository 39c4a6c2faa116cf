"""What the object stores have of blobs, each in the datastore that its document names."""

import asyncio
from collections.abc import Mapping
from typing import Any

from stellwerk_registry.blobs.domain import datastore_of, digest_of
from stellwerk_registry.datastores.places import Places, Slots

_CONCURRENT = 32


class Objects:
    """Of all workspaces; methods raise `Unavailable` when a store does not answer."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._slots = Slots(_CONCURRENT)

    async def sizes(self, workspace: str, documents: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
        """Bytes of those, given by digest, that the store has."""

        async def size(digest: str) -> int | None:
            place = await self._places.of(workspace, datastore_of(documents[digest]))
            async with self._slots.at(place):
                return await place.size(digest)

        sizes = await asyncio.gather(*(size(digest) for digest in documents))
        return {digest: found for digest, found in zip(documents, sizes, strict=True) if found is not None}

    async def delete(self, workspace: str, document: Mapping[str, Any]) -> None:
        """Deletes what the store has of a blob; one in a pack has nothing of its own."""
        if "pack" in document:
            return
        await self.end_upload(workspace, document)
        place = await self._places.of(workspace, datastore_of(document))
        async with self._slots.at(place):
            await place.delete(digest_of(document["_id"]))

    async def end_upload(self, workspace: str, document: Mapping[str, Any]) -> None:
        """Drops the parts of a blob that need not come any more."""
        if "upload" in document:
            place = await self._places.of(workspace, datastore_of(document))
            async with self._slots.at(place):
                await place.store.abort_upload(
                    place.prefix, digest_of(document["_id"]), document["upload"]["id"]
                )
