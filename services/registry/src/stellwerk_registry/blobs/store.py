"""Which blobs are present, without asking the object store for each (docs/decisions/050).

One document a blob: `_id` is `<workspace>/<sha256>`, `seen_time` when it was last found
present or an upload of it was given out, `present` whether it was found present since.
A blob that is being removed has `removing_time`; nobody may count on it then.
"""

import asyncio
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from pymongo import UpdateOne
from pymongo.errors import BulkWriteError

from stellwerk_platform import failpoints
from stellwerk_platform.blobs import BlobStore
from stellwerk_platform.documents import Document
from stellwerk_platform.errors import Unavailable
from stellwerk_platform.mongo import Database
from stellwerk_registry.versions.store import VersionStore

_CONCURRENT = 32
# A removal that takes longer stops, and its marks stay.
_REMOVAL_SECONDS = 15
# After this whoever meets a mark goes on in the place of the process that set it.
_STUCK = timedelta(seconds=3 * _REMOVAL_SECONDS)
_PATIENCE_SECONDS = 10.0
_POLL_SECONDS = 0.05


class BlobIndex:
    """The collection `blobs`, in front of the object store."""

    def __init__(
        self,
        database: Database,
        objects: BlobStore,
        holders: Sequence[VersionStore[Any]],
        grace_seconds: float,
    ) -> None:
        self._database = database
        self._blobs = database.raw["blobs"]
        self._objects = objects
        self._holders = holders
        self._grace = timedelta(seconds=grace_seconds)
        self._slots = asyncio.Semaphore(_CONCURRENT)

    async def open(self) -> None:
        """Creates the collection."""
        await self._database.ensure("blobs", required=["seen_time"])

    async def missing(self, workspace: str, digests: Iterable[str], *, offer: bool = False) -> list[str]:
        """Those that are not there; the others will stay for half the grace time at least.

        With `offer` the caller will be given uploads of what is missing. Raises
        `Unavailable` when some are being removed at this moment.
        """
        unique = list(dict.fromkeys(digests))
        present = await self._touch(workspace, unique)
        missing = [digest for digest in unique if digest not in present]
        if offer and missing:
            moment = datetime.now(UTC)
            await self._upsert(workspace, missing, lambda _: {"$set": {"seen_time": moment}})
        return missing

    async def _touch(self, workspace: str, digests: Sequence[str]) -> set[str]:
        """Those that are present, after saying in the collection that they are in use."""
        moment = datetime.now(UTC)
        known = await self._known(workspace, digests)
        fresh = moment - self._grace / 2
        old = [d["_id"] for d in known.values() if d.get("present") and d["seen_time"] < fresh]
        if old:
            # A removal that was faster has set its mark: what it marked is asked for again below.
            await self._blobs.update_many(
                {"_id": {"$in": old}, "removing_time": {"$exists": False}}, {"$set": {"seen_time": moment}}
            )
            known = await self._known(workspace, digests)
        present = {digest for digest, document in known.items() if document.get("present")}
        uploaded = await self._find([digest for digest in known if digest not in present], workspace)
        if uploaded:
            await self._upsert(
                workspace,
                list(uploaded),
                lambda digest: {"$set": {"seen_time": moment, "present": True, "size": uploaded[digest]}},
            )
        return present | uploaded.keys()

    async def _known(self, workspace: str, digests: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        """The documents by digest, once none of them is being removed any more."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            ids = [_id(workspace, digest) for digest in digests]
            found = {_digest(d["_id"]): d async for d in self._blobs.find({"_id": {"$in": ids}})}
            removing = [digest for digest, document in found.items() if "removing_time" in document]
            if not removing:
                return found
            await self._finish(workspace, [found[digest] for digest in removing])
            if time.monotonic() > deadline:
                raise _being_removed(len(removing))
            await asyncio.sleep(_POLL_SECONDS)

    async def _finish(self, workspace: str, removing: Sequence[Mapping[str, Any]]) -> None:
        """Goes on with removals whose process has died."""
        limit = datetime.now(UTC) - _STUCK
        stuck = [_digest(document["_id"]) for document in removing if document["removing_time"] < limit]
        if stuck:
            await self._remove(workspace, stuck, {"removing_time": {"$lt": limit}})

    async def _find(self, digests: Sequence[str], workspace: str) -> dict[str, int]:
        """Sizes of those that the object store has."""

        async def size(digest: str) -> int | None:
            async with self._slots:
                return await self._objects.size(workspace, digest)

        sizes = await asyncio.gather(*(size(digest) for digest in digests))
        return {digest: found for digest, found in zip(digests, sizes, strict=True) if found is not None}

    async def _upsert(
        self, workspace: str, digests: Sequence[str], update: Callable[[str], dict[str, Any]]
    ) -> None:
        """Changes or creates documents, unless the blob is being removed (raises `Unavailable`)."""
        writes = [
            UpdateOne(
                {"_id": _id(workspace, digest), "removing_time": {"$exists": False}},
                update(digest),
                upsert=True,
            )
            for digest in digests
        ]
        while True:
            try:
                await self._blobs.bulk_write(writes, ordered=False)
                return
            except BulkWriteError as error:
                # The same blob in two calls is one blob; a mark of removal hides the document.
                if any(problem["code"] != 11000 for problem in (error.details or {})["writeErrors"]):
                    raise
                await self._known(workspace, digests)

    async def release(
        self, workspace: str, digests: Iterable[str], *, validate_only: bool
    ) -> tuple[dict[str, int], list[str]]:
        """Removes what nothing refers to; returns sizes by digest, and those that must wait."""
        ids = [_id(workspace, digest) for digest in dict.fromkeys(digests)]
        found = {_digest(d["_id"]): d async for d in self._blobs.find({"_id": {"$in": ids}})}
        used = await self._referred(workspace, list(found))
        free = [digest for digest in found if digest not in used]
        sizes = await self._sizes(workspace, found, free)
        cutoff = datetime.now(UTC) - self._grace
        later = {digest for digest in free if found[digest]["seen_time"] >= cutoff}
        if not validate_only:
            doomed = [digest for digest in free if digest not in later]
            gone = await self._remove(
                workspace, doomed, {"seen_time": {"$lt": cutoff}, "removing_time": {"$exists": False}}
            )
            later.update(set(doomed) - gone)
        return sizes, sorted(later)

    async def _remove(self, workspace: str, digests: Sequence[str], where: Document) -> set[str]:
        """Removes those whose document is as `where` says; returns them.

        Marked first, then asked whether anything refers to it: a reference made before
        the mark is seen now, and whoever wants to make one waits until the mark is gone.
        """
        try:
            async with asyncio.timeout(_REMOVAL_SECONDS):
                return await self._remove_marked(workspace, digests, where)
        except TimeoutError:
            raise _being_removed(len(digests)) from None

    async def _remove_marked(self, workspace: str, digests: Sequence[str], where: Document) -> set[str]:
        ids = [_id(workspace, digest) for digest in digests]
        mark = uuid.uuid4().hex
        await self._blobs.update_many(
            {"_id": {"$in": ids}, **where},
            {"$set": {"removing_time": datetime.now(UTC), "removal": mark}},
        )
        failpoints.hit("blobs.marked")
        marked = {_digest(d["_id"]) async for d in self._blobs.find({"removal": mark, "_id": {"$in": ids}})}
        used = await self._referred(workspace, list(marked))
        await self._blobs.update_many(
            {"_id": {"$in": [_id(workspace, digest) for digest in marked & used]}, "removal": mark},
            {"$unset": {"removing_time": "", "removal": ""}},
        )
        doomed = marked - used
        await asyncio.gather(*(self._delete(workspace, digest) for digest in doomed))
        failpoints.hit("blobs.deleted")
        await self._blobs.delete_many(
            {"_id": {"$in": [_id(workspace, digest) for digest in doomed]}, "removal": mark}
        )
        return doomed

    async def _delete(self, workspace: str, digest: str) -> None:
        async with self._slots:
            await self._objects.delete(workspace, digest)

    async def _referred(self, workspace: str, digests: Sequence[str]) -> set[str]:
        """Those that a dataset or model names."""
        parent = f"workspaces/{workspace}"
        return {d for holder in self._holders for d in await holder.referred(parent, digests)}

    async def _sizes(
        self, workspace: str, found: Mapping[str, Mapping[str, Any]], digests: Sequence[str]
    ) -> dict[str, int]:
        """Of those that are really there."""
        asked = await self._find([d for d in digests if not found[d].get("present")], workspace)
        return {
            digest: int(found[digest]["size"]) for digest in digests if found[digest].get("present")
        } | asked


def _id(workspace: str, digest: str) -> str:
    return f"{workspace}/{digest}"


def _digest(key: str) -> str:
    return key.rpartition("/")[2]


def _being_removed(count: int) -> Unavailable:
    return Unavailable(
        "BLOB_BEING_REMOVED", f"{count:,} of the blobs are being removed at this moment.", "Try again."
    )
