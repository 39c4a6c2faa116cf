"""Removes blobs: a mark, a question to all who may refer to them, the deletion (docs/decisions/050)."""

import asyncio
import logging
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from stellwerk_platform import failpoints
from stellwerk_platform.documents import Document
from stellwerk_platform.errors import PlatformError
from stellwerk_platform.mongo import Database
from stellwerk_registry.blobs.domain import all_of, being_removed, datastore_of, digest_of, id_of, is_pack
from stellwerk_registry.blobs.holders import Holder
from stellwerk_registry.blobs.objects import Objects
from stellwerk_registry.workspaces.domain import DEFAULT_DATASTORE

log = logging.getLogger(__name__)
_DROPPED_AT_ONCE = 1_000
# A removal that takes longer stops, and its marks stay.
REMOVAL_SECONDS = 15
# After this whoever meets a mark goes on in the place of the process that set it.
STUCK = timedelta(seconds=3 * REMOVAL_SECONDS)


class Removals:
    """Those of all workspaces, in the collection `blobs`."""

    def __init__(
        self, database: Database, objects: Objects, holders: Sequence[Holder], grace: timedelta
    ) -> None:
        self._blobs = database.raw["blobs"]
        self._objects = objects
        self._holders = holders
        self._grace = grace

    async def release(
        self, workspace: str, digests: Iterable[str], *, validate_only: bool
    ) -> tuple[dict[str, int], list[str]]:
        """Removes what nothing refers to; returns sizes by digest, and those that must wait."""
        ids = [id_of(workspace, digest) for digest in dict.fromkeys(digests)]
        found = {digest_of(d["_id"]): d async for d in self._blobs.find({"_id": {"$in": ids}})}
        used = await self.referred(workspace, list(found))
        free = [digest for digest in found if digest not in used]
        sizes = await self._sizes(workspace, found, free)
        cutoff = datetime.now(UTC) - self._grace
        later = {digest for digest in free if found[digest]["seen_time"] >= cutoff}
        if not validate_only:
            doomed = [digest for digest in free if digest not in later]
            gone = await self.remove(
                workspace, doomed, {"seen_time": {"$lt": cutoff}, "removing_time": {"$exists": False}}
            )
            later.update(set(doomed) - gone)
            later |= await self._empty_packs(workspace, [found[digest] for digest in gone], cutoff)
        return sizes, sorted(later)

    async def _empty_packs(
        self, workspace: str, gone: Sequence[Mapping[str, Any]], cutoff: datetime
    ) -> set[str]:
        """Removes the packs of blobs that are gone, once they hold none; returns those that must wait."""
        packs = [document["pack"] for document in gone if "pack" in document]
        # Others are blobs too, to which something of `runs` may refer.
        only = {digest_of(d["_id"]) async for d in self._blobs.find({"_id": {"$in": packs}}) if is_pack(d)}
        empty = only - await self.referred(workspace, list(only))
        where: Document = {"seen_time": {"$lt": cutoff}, "removing_time": {"$exists": False}}
        return empty - await self.remove(workspace, list(empty), where) if empty else set()

    async def remove(self, workspace: str, digests: Sequence[str], where: Document) -> set[str]:
        """Removes those whose document is as `where` says; returns them.

        Marked first, then asked whether anything refers to it: a reference made before
        the mark is seen now, and whoever wants to make one waits until the mark is gone.
        """
        try:
            async with asyncio.timeout(REMOVAL_SECONDS):
                return await self._remove_marked(workspace, digests, where)
        except TimeoutError:
            raise being_removed(len(digests)) from None

    async def _remove_marked(self, workspace: str, digests: Sequence[str], where: Document) -> set[str]:
        ids = [id_of(workspace, digest) for digest in digests]
        mark = uuid.uuid4().hex
        await self._blobs.update_many(
            {"_id": {"$in": ids}, **where},
            {"$set": {"removing_time": datetime.now(UTC), "removal": mark}},
        )
        failpoints.hit("blobs.marked")
        found = self._blobs.find({"removal": mark, "_id": {"$in": ids}})
        marked = {digest_of(document["_id"]): document async for document in found}
        used = await self.referred(workspace, list(marked))
        await self._blobs.update_many(
            {"_id": {"$in": [id_of(workspace, digest) for digest in marked.keys() & used]}, "removal": mark},
            {"$unset": {"removing_time": "", "removal": ""}},
        )
        doomed = marked.keys() - used
        await asyncio.gather(*(self._objects.delete(workspace, marked[digest]) for digest in doomed))
        failpoints.hit("blobs.deleted")
        await self._blobs.delete_many(
            {"_id": {"$in": [id_of(workspace, digest) for digest in doomed]}, "removal": mark}
        )
        return doomed

    async def finish(self, workspace: str, removing: Sequence[Mapping[str, Any]]) -> None:
        """Goes on with removals whose process has died."""
        limit = datetime.now(UTC) - STUCK
        stuck = [digest_of(document["_id"]) for document in removing if document["removing_time"] < limit]
        if stuck:
            await self.remove(workspace, stuck, {"removing_time": {"$lt": limit}})

    async def drop(self, workspace: str) -> tuple[int, int]:
        """Removes all blobs of a workspace, whatever refers to them; returns how many, and their bytes.

        A store of a user that is away does not hold up the rest: its blobs stay there.
        """
        where = {"_id": all_of(workspace)}
        count, size_bytes = 0, 0
        while documents := await self._blobs.find(where).limit(_DROPPED_AT_ONCE).to_list(_DROPPED_AT_ONCE):
            await asyncio.gather(*(self._drop(workspace, document) for document in documents))
            await self._blobs.delete_many({"_id": {"$in": [document["_id"] for document in documents]}})
            present = [document for document in documents if document.get("present")]
            count += len(present)
            size_bytes += sum(int(document.get("size", 0)) for document in present)
        return count, size_bytes

    async def _drop(self, workspace: str, document: Mapping[str, Any]) -> None:
        try:
            await self._objects.delete(workspace, document)
        except PlatformError as error:
            if datastore_of(document) == DEFAULT_DATASTORE:
                raise
            log.error("%s stays in %s: %s", document["_id"], datastore_of(document), error)

    async def referred(self, workspace: str, digests: Sequence[str]) -> set[str]:
        """Those that a dataset, a model or collected data names, and packs that hold something."""
        parent = f"workspaces/{workspace}"
        ids = [id_of(workspace, digest) for digest in digests]
        holding = await self._blobs.distinct("pack", {"pack": {"$in": ids}})
        named = {digest_of(pack) for pack in holding}
        # The last to be asked is another service, and seldom has to be.
        for holder in self._holders:
            if rest := [digest for digest in digests if digest not in named]:
                named |= await holder.referred(parent, rest)
        return named

    async def _sizes(
        self, workspace: str, found: Mapping[str, Mapping[str, Any]], digests: Sequence[str]
    ) -> dict[str, int]:
        """Of those that are really there."""
        asked = await self._objects.sizes(
            workspace, {d: found[d] for d in digests if not found[d].get("present")}
        )
        return {
            digest: int(found[digest]["size"]) for digest in digests if found[digest].get("present")
        } | asked
