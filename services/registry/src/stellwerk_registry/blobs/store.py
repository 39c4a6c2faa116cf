"""Which blobs are present, without asking the object store for each (docs/decisions/050).

One document a blob: `_id` is `<workspace>/<sha256>`, `seen_time` when it was last found
present or an upload of it was given out, `present` whether it was found present since,
`offer_time` when an upload was given out that nobody has found yet, `size` in bytes (until
it is present: what the client says), `datastore` the id of the datastore where it lies.
A small blob may lie in another one, a pack: `pack` is the `_id` of that and `offset` where
in it (`packs/store.py`); a pack has `pack_bytes`, and counts no bytes of its own.
A blob that travels in parts has `upload` until the whole was checked (`uploads/store.py`), unless it comes
in one piece before: then whoever finds it there ends the upload. Not once the upload is `claimed`; wholes
that were wrong and are deleted are counted in `discards`.
A blob that is being removed has `removing_time`; nobody may count on it then.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from pymongo import ASCENDING, IndexModel, UpdateOne
from pymongo.errors import BulkWriteError

from stellwerk_platform import failpoints
from stellwerk_platform.blobs import URL_SECONDS
from stellwerk_platform.documents import Document
from stellwerk_platform.errors import PlatformError, Unavailable
from stellwerk_platform.mongo import Database
from stellwerk_registry.blobs.holders import Holder
from stellwerk_registry.datastores.places import Places, Slots
from stellwerk_registry.workspaces.domain import DEFAULT_DATASTORE

log = logging.getLogger(__name__)
_CONCURRENT = 32
_SETTLED_AT_ONCE = 1_000
_SETTLE_SECONDS = 60.0
_DROPPED_AT_ONCE = 1_000
# A removal that takes longer stops, and its marks stay.
REMOVAL_SECONDS = 15
# After this whoever meets a mark goes on in the place of the process that set it.
_STUCK = timedelta(seconds=3 * REMOVAL_SECONDS)
_PATIENCE_SECONDS = 10.0
_POLL_SECONDS = 0.05


class BlobIndex:
    """The collection `blobs`, in front of the object store."""

    def __init__(
        self,
        database: Database,
        places: Places,
        holders: Sequence[Holder],
        grace_seconds: float,
    ) -> None:
        self._database = database
        self._blobs = database.raw["blobs"]
        self._places = places
        self._holders = holders
        self._grace = timedelta(seconds=grace_seconds)
        self._slots = Slots(_CONCURRENT)

    async def open(self) -> None:
        """Creates the collection."""
        # What a workspace uses is summed in the index alone.
        sizes = IndexModel([(key, ASCENDING) for key in ("_id", "present", "offer_time", "size")])
        indexes = [
            sizes,
            IndexModel([("offer_time", ASCENDING)], sparse=True),
            IndexModel([("pack", ASCENDING)], sparse=True),
        ]
        await self._database.ensure("blobs", indexes, required=["seen_time"])

    async def missing(self, workspace: str, digests: Iterable[str]) -> list[str]:
        """Those that are not there; the others will stay for half the grace time at least.

        Raises `Unavailable` when some are being removed at this moment.
        """
        unique = list(dict.fromkeys(digests))
        present = await self._touch(workspace, unique)
        return [digest for digest in unique if digest not in present]

    async def offer(self, workspace: str, sizes: Mapping[str, int], datastore: str) -> None:
        """Notes that uploads of what is missing are given out, with the sizes that the client says."""
        moment = datetime.now(UTC)

        def offered(digest: str) -> list[Document]:
            # Somebody else may have brought it in the meantime: its real size is known then.
            is_there = {"$eq": ["$present", True]}
            # Parts of it lie there already.
            is_placed = {"$or": [is_there, {"$eq": [{"$type": "$upload"}, "object"]}]}
            return [
                {
                    "$set": {
                        "seen_time": moment,
                        "offer_time": {"$cond": [is_there, "$$REMOVE", moment]},
                        "size": {"$cond": [is_there, "$size", sizes[digest]]},
                        "datastore": {"$cond": [is_placed, "$datastore", datastore]},
                    }
                }
            ]

        await self._upsert(workspace, list(sizes), offered)

    async def documents(self, workspace: str, digests: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        """What is known of blobs, by digest."""
        ids = [_id(workspace, digest) for digest in digests]
        return {_digest(d["_id"]): d async for d in self._blobs.find({"_id": {"$in": ids}})}

    async def pack(
        self, workspace: str, pack: str, places: Mapping[str, tuple[int, int]], *, is_only_pack: bool
    ) -> None:
        """Notes that blobs, by digest with offset and bytes, lie in a pack, unless they are there already.

        What somebody may have meant as a blob of its own (not `is_only_pack`) stays one, which counts and
        does not go with the last that lies in it.
        """
        moment, pack_id = datetime.now(UTC), _id(workspace, pack)
        datastore = _datastore((await self.documents(workspace, [pack]))[pack])
        size_bytes = sum(size for _, size in places.values())

        def packed(digest: str) -> list[Document]:
            offset, size = places[digest]
            known = {"present": True, "size": size, "datastore": datastore, "pack": pack_id, "offset": offset}
            claimed = {"$eq": ["$upload.claimed", True]}
            unless = {"$or": [{"$eq": ["$present", True]}, claimed]}
            fields = {
                key: {"$cond": [unless, f"${key}", {"$literal": value}]} for key, value in known.items()
            }
            fields["upload"] = {"$cond": [claimed, "$upload", "$$REMOVE"]}
            return [{"$set": {"seen_time": moment, **fields}}, {"$unset": ["offer_time"]}]

        # First, so that the pack is never counted beside what lies in it.
        if is_only_pack:
            await self._blobs.update_one({"_id": pack_id}, {"$set": {"size": 0, "pack_bytes": size_bytes}})
        await self._upsert(workspace, list(places), packed)
        if is_only_pack and not await self._referred(workspace, [pack]):
            # Somebody else was faster with all of it, in other packs.
            await self._remove(workspace, [pack], {"removing_time": {"$exists": False}})

    async def unpacked(self, workspace: str, digest: str) -> None:
        """Notes that a blob has an object of its own now."""
        await self._blobs.update_one({"_id": _id(workspace, digest)}, {"$unset": {"pack": "", "offset": ""}})

    async def used_bytes(self, workspace: str, without: Sequence[str] = ()) -> int:
        """Bytes of all blobs that are there, and of uploads that may still come."""
        since = datetime.now(UTC) - timedelta(seconds=URL_SECONDS)
        left_out = [_id(workspace, digest) for digest in without]
        in_parts = {"upload": {"$exists": True}}
        pipeline: list[Document] = [
            {"$match": {"_id": {"$gt": f"{workspace}/", "$lt": f"{workspace}0", "$nin": left_out}}},
            {"$match": {"$or": [{"present": True}, {"offer_time": {"$gte": since}}, in_parts]}},
            {"$group": {"_id": None, "sum": {"$sum": "$size"}}},
        ]
        return sum([int(document["sum"]) async for document in self._blobs.aggregate(pipeline)])

    async def datastores(self, workspace: str, digests: Sequence[str]) -> dict[str, str]:
        """The ids of the datastores where blobs lie, by digest."""
        ids = [_id(workspace, digest) for digest in digests]
        found = self._blobs.find({"_id": {"$in": ids}}, {"datastore": 1})
        return {_digest(document["_id"]): _datastore(document) async for document in found}

    async def lies_in(self, workspace: str, datastore: str) -> bool:
        """Whether a blob lies in a datastore, or may be on its way there."""
        where: Document = {"_id": {"$gt": f"{workspace}/", "$lt": f"{workspace}0"}, "datastore": datastore}
        return await self._blobs.find_one(where, {"_id": 1}) is not None

    async def run(self) -> None:
        """Settles for ever."""
        while True:
            try:
                await self.settle()
            except Exception as error:
                log.warning("Uploads that nobody asked for again wait: %s", error)
            await asyncio.sleep(_SETTLE_SECONDS)

    async def settle(self) -> None:
        """Finds out what became of uploads that were given out and never asked for again.

        Their URLs have ended. What did come counts with its real size from now on.
        """
        until = datetime.now(UTC) - max(self._grace, timedelta(seconds=URL_SECONDS))
        where: Document = {
            "offer_time": {"$lt": until},
            "removing_time": {"$exists": False},
            "upload": {"$exists": False},
        }
        async for document in self._blobs.find(where).limit(_SETTLED_AT_ONCE):
            workspace, _, digest = document["_id"].partition("/")
            size = (await self._find(workspace, {digest: document})).get(digest)
            same = {"_id": document["_id"], "offer_time": document["offer_time"]}
            if size is None:
                await self._blobs.delete_one(same)
            else:
                found = {"$set": {"present": True, "size": size}, "$unset": {"offer_time": ""}}
                await self._blobs.update_one(same, found)

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
        # What is put together of parts is missing until it was checked, whatever the object store has.
        asked = {d: found for d, found in known.items() if d not in present and not _is_claimed(found)}
        uploaded = await self._find(workspace, asked)
        if not uploaded:
            return present
        found = await self._found(workspace, uploaded, asked)
        await asyncio.gather(*(self._end_upload(workspace, asked[digest]) for digest in found))
        return present | found

    async def _found(
        self, workspace: str, sizes: Mapping[str, int], asked: Mapping[str, Mapping[str, Any]]
    ) -> set[str]:
        """Notes that blobs are there, by digest with bytes; returns those of which that is still so.

        `asked` has their documents as they were before the object store was asked.
        """
        moment = datetime.now(UTC)
        writes = [
            UpdateOne(
                {
                    "_id": _id(workspace, digest),
                    "removing_time": {"$exists": False},
                    "upload.claimed": {"$ne": True},
                    "discards": asked[digest].get("discards"),
                },
                {
                    "$set": {"seen_time": moment, "present": True, "size": size},
                    "$unset": {"offer_time": "", "upload": ""},
                },
            )
            for digest, size in sizes.items()
        ]
        await self._blobs.bulk_write(writes, ordered=False)
        known = await self._known(workspace, list(sizes))
        return {digest for digest, document in known.items() if document.get("present")}

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

    async def _find(self, workspace: str, documents: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
        """Sizes of those, given by digest, that the object store has."""

        async def size(digest: str) -> int | None:
            place = await self._places.of(workspace, _datastore(documents[digest]))
            async with self._slots.at(place):
                return await place.size(digest)

        sizes = await asyncio.gather(*(size(digest) for digest in documents))
        return {digest: found for digest, found in zip(documents, sizes, strict=True) if found is not None}

    async def _upsert(
        self, workspace: str, digests: Sequence[str], update: Callable[[str], Document | list[Document]]
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
            later |= await self._empty_packs(workspace, [found[digest] for digest in gone], cutoff)
        return sizes, sorted(later)

    async def _empty_packs(
        self, workspace: str, gone: Sequence[Mapping[str, Any]], cutoff: datetime
    ) -> set[str]:
        """Removes the packs of blobs that are gone, once they hold none; returns those that must wait."""
        packs = {_digest(document["pack"]) for document in gone if "pack" in document}
        # Others are blobs too, to which something of `runs` may refer.
        only = {d for d, known in (await self.documents(workspace, list(packs))).items() if is_pack(known)}
        empty = only - await self._referred(workspace, list(only))
        where: Document = {"seen_time": {"$lt": cutoff}, "removing_time": {"$exists": False}}
        return empty - await self._remove(workspace, list(empty), where) if empty else set()

    async def _remove(self, workspace: str, digests: Sequence[str], where: Document) -> set[str]:
        """Removes those whose document is as `where` says; returns them.

        Marked first, then asked whether anything refers to it: a reference made before
        the mark is seen now, and whoever wants to make one waits until the mark is gone.
        """
        try:
            async with asyncio.timeout(REMOVAL_SECONDS):
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
        found = self._blobs.find({"removal": mark, "_id": {"$in": ids}})
        marked = {_digest(document["_id"]): document async for document in found}
        used = await self._referred(workspace, list(marked))
        await self._blobs.update_many(
            {"_id": {"$in": [_id(workspace, digest) for digest in marked.keys() & used]}, "removal": mark},
            {"$unset": {"removing_time": "", "removal": ""}},
        )
        doomed = marked.keys() - used
        await asyncio.gather(*(self._delete(workspace, marked[digest]) for digest in doomed))
        failpoints.hit("blobs.deleted")
        await self._blobs.delete_many(
            {"_id": {"$in": [_id(workspace, digest) for digest in doomed]}, "removal": mark}
        )
        return doomed

    async def _delete(self, workspace: str, document: Mapping[str, Any]) -> None:
        if "pack" in document:
            return
        await self._end_upload(workspace, document)
        place = await self._places.of(workspace, _datastore(document))
        async with self._slots.at(place):
            await place.delete(_digest(document["_id"]))

    async def _end_upload(self, workspace: str, document: Mapping[str, Any]) -> None:
        """Drops the parts of a blob that need not come any more."""
        if "upload" in document:
            place = await self._places.of(workspace, _datastore(document))
            async with self._slots.at(place):
                await place.store.abort_upload(
                    place.prefix, _digest(document["_id"]), document["upload"]["id"]
                )

    async def count(self, workspace: str) -> tuple[int, int]:
        """How many blobs a workspace has, and their bytes."""
        where: Document = {"_id": {"$gt": f"{workspace}/", "$lt": f"{workspace}0"}, "present": True}
        where["pack_bytes"] = {"$exists": False}
        return await self._blobs.count_documents(where), await self.used_bytes(workspace)

    async def drop(self, workspace: str) -> tuple[int, int]:
        """Removes all blobs of a workspace, whatever refers to them; returns how many, and their bytes.

        A store of a user that is away does not hold up the rest: its blobs stay there.
        """
        where = {"_id": {"$gt": f"{workspace}/", "$lt": f"{workspace}0"}}
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
            await self._delete(workspace, document)
        except PlatformError as error:
            if _datastore(document) == DEFAULT_DATASTORE:
                raise
            log.error("%s stays in %s: %s", document["_id"], _datastore(document), error)

    async def _referred(self, workspace: str, digests: Sequence[str]) -> set[str]:
        """Those that a dataset, a model or collected data names, and packs that hold something."""
        parent = f"workspaces/{workspace}"
        ids = [_id(workspace, digest) for digest in digests]
        holding = await self._blobs.distinct("pack", {"pack": {"$in": ids}})
        named = {_digest(pack) for pack in holding}
        # The last to be asked is another service, and seldom has to be.
        for holder in self._holders:
            if rest := [digest for digest in digests if digest not in named]:
                named |= await holder.referred(parent, rest)
        return named

    async def _sizes(
        self, workspace: str, found: Mapping[str, Mapping[str, Any]], digests: Sequence[str]
    ) -> dict[str, int]:
        """Of those that are really there."""
        asked = await self._find(workspace, {d: found[d] for d in digests if not found[d].get("present")})
        return {
            digest: int(found[digest]["size"]) for digest in digests if found[digest].get("present")
        } | asked


def is_pack(document: Mapping[str, Any]) -> bool:
    """Whether a blob is nothing but a pack."""
    return "pack_bytes" in document


def _is_claimed(document: Mapping[str, Any]) -> bool:
    return bool(document.get("upload", {}).get("claimed"))


def _id(workspace: str, digest: str) -> str:
    return f"{workspace}/{digest}"


def _digest(key: str) -> str:
    return key.rpartition("/")[2]


def _datastore(document: Mapping[str, Any]) -> str:
    return str(document.get("datastore", DEFAULT_DATASTORE))


def _being_removed(count: int) -> Unavailable:
    return Unavailable(
        "BLOB_BEING_REMOVED", f"{count:,} of the blobs are being removed at this moment.", "Try again."
    )
