"""Which blobs are present, without asking the object store for each (docs/decisions/050)."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from pymongo import ASCENDING, IndexModel, UpdateOne
from pymongo.errors import BulkWriteError

from stellwerk_platform.blobs import URL_SECONDS
from stellwerk_platform.documents import Document
from stellwerk_platform.mongo import Database
from stellwerk_registry.blobs.domain import all_of, being_removed, datastore_of, digest_of, id_of, is_claimed
from stellwerk_registry.blobs.holders import Holder
from stellwerk_registry.blobs.objects import Objects
from stellwerk_registry.datastores.places import Places
from stellwerk_registry.removals.store import Removals

log = logging.getLogger(__name__)
_SETTLED_AT_ONCE = 1_000
_SETTLE_SECONDS = 60.0
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
        self._grace = timedelta(seconds=grace_seconds)
        self._objects = Objects(places)
        self.removals = Removals(database, self._objects, holders, self._grace)

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
        ids = [id_of(workspace, digest) for digest in digests]
        return {digest_of(d["_id"]): d async for d in self._blobs.find({"_id": {"$in": ids}})}

    async def pack(
        self, workspace: str, pack: str, places: Mapping[str, tuple[int, int]], *, is_only_pack: bool
    ) -> None:
        """Notes that blobs, by digest with offset and bytes, lie in a pack, unless they are there already.

        What somebody may have meant as a blob of its own (not `is_only_pack`) stays one, which counts and
        does not go with the last that lies in it.
        """
        moment, pack_id = datetime.now(UTC), id_of(workspace, pack)
        datastore = datastore_of((await self.documents(workspace, [pack]))[pack])
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
        if is_only_pack and not await self.removals.referred(workspace, [pack]):
            # Somebody else was faster with all of it, in other packs.
            await self.removals.remove(workspace, [pack], {"removing_time": {"$exists": False}})

    async def unpacked(self, workspace: str, digest: str) -> None:
        """Notes that a blob has an object of its own now."""
        await self._blobs.update_one(
            {"_id": id_of(workspace, digest)}, {"$unset": {"pack": "", "offset": ""}}
        )

    async def used_bytes(self, workspace: str, without: Sequence[str] = ()) -> int:
        """Bytes of all blobs that are there, and of uploads that may still come."""
        since = datetime.now(UTC) - timedelta(seconds=URL_SECONDS)
        left_out = [id_of(workspace, digest) for digest in without]
        in_parts = {"upload": {"$exists": True}}
        pipeline: list[Document] = [
            {"$match": {"_id": {**all_of(workspace), "$nin": left_out}}},
            {"$match": {"$or": [{"present": True}, {"offer_time": {"$gte": since}}, in_parts]}},
            {"$group": {"_id": None, "sum": {"$sum": "$size"}}},
        ]
        return sum([int(document["sum"]) async for document in self._blobs.aggregate(pipeline)])

    async def datastores(self, workspace: str, digests: Sequence[str]) -> dict[str, str]:
        """The ids of the datastores where blobs lie, by digest."""
        ids = [id_of(workspace, digest) for digest in digests]
        found = self._blobs.find({"_id": {"$in": ids}}, {"datastore": 1})
        return {digest_of(document["_id"]): datastore_of(document) async for document in found}

    async def lies_in(self, workspace: str, datastore: str) -> bool:
        """Whether a blob lies in a datastore, or may be on its way there."""
        where: Document = {"_id": all_of(workspace), "datastore": datastore}
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
            size = (await self._objects.sizes(workspace, {digest: document})).get(digest)
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
        asked = {d: found for d, found in known.items() if d not in present and not is_claimed(found)}
        uploaded = await self._objects.sizes(workspace, asked)
        if not uploaded:
            return present
        found = await self._found(workspace, uploaded, asked)
        await asyncio.gather(*(self._objects.end_upload(workspace, asked[digest]) for digest in found))
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
                    "_id": id_of(workspace, digest),
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
            ids = [id_of(workspace, digest) for digest in digests]
            found = {digest_of(d["_id"]): d async for d in self._blobs.find({"_id": {"$in": ids}})}
            removing = [digest for digest, document in found.items() if "removing_time" in document]
            if not removing:
                return found
            await self.removals.finish(workspace, [found[digest] for digest in removing])
            if time.monotonic() > deadline:
                raise being_removed(len(removing))
            await asyncio.sleep(_POLL_SECONDS)

    async def _upsert(
        self, workspace: str, digests: Sequence[str], update: Callable[[str], Document | list[Document]]
    ) -> None:
        """Changes or creates documents, unless the blob is being removed (raises `Unavailable`)."""
        writes = [
            UpdateOne(
                {"_id": id_of(workspace, digest), "removing_time": {"$exists": False}},
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

    async def count(self, workspace: str) -> tuple[int, int]:
        """How many blobs a workspace has, and their bytes."""
        where: Document = {"_id": all_of(workspace), "present": True}
        where["pack_bytes"] = {"$exists": False}
        return await self._blobs.count_documents(where), await self.used_bytes(workspace)
