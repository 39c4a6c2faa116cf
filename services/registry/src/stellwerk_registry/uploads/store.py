"""Uploads in parts: begun, taken up again by anybody, put together and checked here (docs/decisions/052).

The document of the blob (`blobs/domain.py`) has an `upload` from its begin until the whole was read
and has the right digest; as long as it does, the blob is missing for everybody.
"""

import asyncio
import contextlib
import hashlib
import logging
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

from pymongo import ASCENDING, IndexModel

from stellwerk_platform import failpoints
from stellwerk_platform.blobs import BlobStore
from stellwerk_platform.documents import Document
from stellwerk_platform.errors import FailedPrecondition, InvalidArgument, PlatformError, Unavailable
from stellwerk_platform.mongo import Database
from stellwerk_registry.blobs.domain import being_removed, datastore_of, id_of
from stellwerk_registry.datastores.places import Place, Places
from stellwerk_registry.removals.store import REMOVAL_SECONDS, STUCK
from stellwerk_registry.uploads.domain import Check, Upload, part_size

log = logging.getLogger(__name__)
_ANSWER_SECONDS = 3.0
_LATER_SECONDS = 60.0
_HASH_BYTES = 8 * 1024 * 1024
_SWEEP_SECONDS = 3_600.0
_ABANDONED = timedelta(days=7)


class Uploads:
    """The uploads of all workspaces."""

    def __init__(
        self, database: Database, places: Places, platform: BlobStore, smallest_part_bytes: int
    ) -> None:
        self._database = database
        self._blobs = database.raw["blobs"]
        self._places = places
        self._platform = platform
        self._smallest_part_bytes = smallest_part_bytes
        # The checks that go on in this process, and how many bytes they have read.
        self._checks: dict[str, asyncio.Task[None]] = {}
        self._checked: dict[str, int] = {}

    async def open(self) -> None:
        """Creates the index, beside those of the blobs."""
        await self._database.ensure("blobs", [IndexModel([("upload.id", ASCENDING)], sparse=True)])

    async def _place(self, workspace: str, sha256: str) -> Place:
        """Where the blob lies, or will; its document has the datastore from the first offer on."""
        document = await self._blobs.find_one({"_id": id_of(workspace, sha256)}, {"datastore": 1}) or {}
        return await self._places.of(workspace, datastore_of(document))

    def part_size(self, size_bytes: int) -> int:
        """Bytes of the parts of a blob; 0 for one that travels in one piece."""
        return part_size(size_bytes, self._smallest_part_bytes)

    async def begin(self, workspace: str, sha256: str, size_bytes: int) -> tuple[Upload, list[int]] | None:
        """The upload of a blob, begun now or earlier, and the parts that are there.

        None for one that is whole in the meantime. It has a document (`BlobIndex.offer`).
        Raises `Unavailable`.
        """
        while True:
            document = await self._blobs.find_one({"_id": id_of(workspace, sha256)}) or {}
            upload = Upload.of(document)
            if upload is None and document.get("present"):
                return None
            if upload is not None and upload.claimed and upload.size_bytes != size_bytes:
                raise _being_checked(sha256)
            if upload is None or upload.size_bytes != size_bytes:
                await self._begin(workspace, sha256, size_bytes, upload)
                continue
            if upload.assembled:
                return upload, list(range(1, upload.part_count + 1))
            place = await self._place(workspace, sha256)
            parts = await place.store.parts(place.prefix, sha256, upload.id)
            if parts is not None:
                return upload, [part.number for part in upload.whole(parts)]
            await self._settle(workspace, sha256, upload)

    async def _begin(self, workspace: str, sha256: str, size_bytes: int, old: Upload | None) -> None:
        place = await self._place(workspace, sha256)
        upload_id = await place.store.begin_upload(place.prefix, sha256)
        failpoints.hit("upload.begun")
        upload = Upload(upload_id, size_bytes, self.part_size(size_bytes))
        known: Document = {"upload": {"$exists": False}}
        if old is not None:
            known = {"upload.id": old.id, "upload.claimed": {"$ne": True}}
        result = await self._blobs.update_one(
            {"_id": id_of(workspace, sha256), "present": {"$ne": True}, **known},
            {"$set": {"upload": asdict(upload), "seen_time": datetime.now(UTC)}},
        )
        # Somebody may have been faster; and whoever named another size was wrong, or we are.
        doomed = upload_id if result.matched_count == 0 else old.id if old is not None else ""
        if doomed:
            await place.store.abort_upload(place.prefix, sha256, doomed)

    async def _settle(self, workspace: str, sha256: str, upload: Upload) -> None:
        """The store does not know the upload any more: it was put together, or dropped."""
        where = {"_id": id_of(workspace, sha256), "upload.id": upload.id}
        place = await self._place(workspace, sha256)
        # Another size is that of a blob which came in one piece, and which the store has checked.
        if await place.size(sha256) == upload.size_bytes:
            await self._blobs.update_one(where, {"$set": {"upload.claimed": True, "upload.assembled": True}})
        else:
            await self._blobs.update_one(where, {"$unset": {"upload": ""}})

    async def part_url(
        self, workspace: str, sha256: str, number: int, part_sha256: str
    ) -> tuple[str, dict[str, str]]:
        """Where to put a part; raises `FailedPrecondition`, `InvalidArgument`."""
        moment = datetime.now(UTC)
        document = await self._blobs.find_one_and_update(
            {"_id": id_of(workspace, sha256), "upload.assembled": False},
            {"$set": {"seen_time": moment, "offer_time": moment}},
        )
        upload = Upload.of(document)
        if upload is None:
            raise _not_found(sha256)
        if not 1 <= number <= upload.part_count:
            raise InvalidArgument(
                "INVALID_PART", f"There is no part {number}.", f"Send parts 1 to {upload.part_count:,}."
            )
        place = await self._place(workspace, sha256)
        return place.store.part_url(
            place.prefix, sha256, upload.id, number, part_sha256, upload.part_bytes(number)
        )

    async def complete(self, workspace: str, sha256: str) -> Check:
        """Puts the blob together and checks it, which goes on after some seconds without an answer.

        Raises `FailedPrecondition` for parts that are missing and for a whole with another digest.
        """
        key = id_of(workspace, sha256)
        document = await self._blobs.find_one({"_id": key}) or {}
        upload = Upload.of(document)
        if upload is None and document.get("present"):
            return Check(True, int(document["size"]))
        task = self._checks.get(key)
        if task is None:
            if upload is None:
                raise _not_found(sha256)
            task = self._checks[key] = asyncio.create_task(self._check(workspace, sha256, upload))
            task.add_done_callback(lambda _: self._forget(key, _LATER_SECONDS))
        done, _ = await asyncio.wait({task}, timeout=_ANSWER_SECONDS)
        if not done:
            return Check(False, self._checked.get(key, 0))
        # The first to ask after the end gets its error; the next call begins anew.
        if self._checks.get(key) is task:
            del self._checks[key]
        await task
        return Check(True, self._checked.pop(key, 0))

    def _forget(self, key: str, seconds: float) -> None:
        """Nobody may ask how a check ended: its error, too, is kept for a while only."""

        def forget() -> None:
            task = self._checks.get(key)
            if task is not None and task.done():
                del self._checks[key]
                self._checked.pop(key, None)
                if not task.cancelled():
                    task.exception()

        asyncio.get_running_loop().call_later(seconds, forget)

    async def _check(self, workspace: str, sha256: str, upload: Upload) -> None:
        if not upload.assembled and not await self._assemble(workspace, sha256, upload):
            return
        failpoints.hit("upload.assembled")
        where = {"_id": id_of(workspace, sha256), "upload.id": upload.id}
        found = await self._digest(workspace, sha256, upload.size_bytes)
        if found != sha256:
            await self._discard(workspace, sha256, where)
            raise FailedPrecondition(
                "DIGEST_MISMATCH",
                f"The parts make a blob with the SHA-256 {found}, not {sha256}.",
                "The file may have changed while it was uploaded: upload it again.",
            )
        present = {"present": True, "size": upload.size_bytes, "seen_time": datetime.now(UTC)}
        await self._blobs.update_one(where, {"$set": present, "$unset": {"upload": "", "offer_time": ""}})

    async def _assemble(self, workspace: str, sha256: str, upload: Upload) -> bool:
        """Puts the parts together; False when the blob came in one piece in the meantime."""
        place = await self._place(workspace, sha256)
        parts = await place.store.parts(place.prefix, sha256, upload.id)
        if parts is not None:
            whole = upload.whole(parts)
            if len(whole) < upload.part_count:
                raise FailedPrecondition(
                    "PARTS_MISSING",
                    f"{upload.part_count - len(whole):,} of {upload.part_count:,} parts are missing.",
                    "Ask PrepareUploads which are there, and put the others.",
                )
            if not await self._claim(workspace, sha256, upload):
                return False
            await place.store.finish_upload(place.prefix, sha256, upload.id, whole)
        await self._settle(workspace, sha256, upload)
        again = Upload.of(await self._blobs.find_one({"_id": id_of(workspace, sha256)}))
        if again is None or again.id != upload.id:
            raise _not_found(sha256)
        return True

    async def _claim(self, workspace: str, sha256: str, upload: Upload) -> bool:
        """Says that what the store has is not to be believed from now on; False for a blob that is there.

        Whoever finds the blob in the store before says so in the same document, and ends the upload.
        """
        key = id_of(workspace, sha256)
        claimed = await self._blobs.update_one(
            {"_id": key, "upload.id": upload.id, "removing_time": {"$exists": False}},
            {"$set": {"upload.claimed": True, "seen_time": datetime.now(UTC)}},
        )
        if claimed.matched_count:
            return True
        document = await self._blobs.find_one({"_id": key}) or {}
        if not document.get("present"):
            raise _not_found(sha256)
        return False

    async def finish_claimed(self, workspace: str, sizes: Mapping[str, int]) -> None:
        """Checks wholes that somebody made with another size, so that they stand in nobody's way.

        Raises `Unavailable` while that goes on.
        """
        ids = [id_of(workspace, sha256) for sha256 in sizes]
        async for document in self._blobs.find({"_id": {"$in": ids}, "upload.claimed": True}):
            sha256 = document["_id"].rpartition("/")[2]
            if document["upload"]["size_bytes"] == sizes[sha256]:
                continue
            # What it says of the other whole is nothing for this caller.
            with contextlib.suppress(FailedPrecondition):
                if not (await self.complete(workspace, sha256)).done:
                    raise _being_checked(sha256)

    async def _discard(self, workspace: str, sha256: str, where: Document) -> bool:
        """Drops an upload and what the store has; one process does, and nobody counts on it meanwhile.

        Also one whose process stopped on the way; False where another is at it. Raises `Unavailable`.
        """
        moment = datetime.now(UTC)
        mark = {"removing_time": moment, "removal": uuid.uuid4().hex}
        free = [{"removing_time": {"$exists": False}}, {"removing_time": {"$lt": moment - STUCK}}]
        document = await self._blobs.find_one_and_update(
            {**where, "$or": free}, {"$set": mark, "$inc": {"discards": 1}}
        )
        upload = Upload.of(document)
        if upload is None:
            return False
        place = await self._place(workspace, sha256)
        try:
            async with asyncio.timeout(REMOVAL_SECONDS):
                await place.store.abort_upload(place.prefix, sha256, upload.id)
                await place.delete(sha256)
        except TimeoutError:
            raise being_removed(1) from None
        failpoints.hit("upload.discarded")
        result = await self._blobs.update_one(
            {"_id": id_of(workspace, sha256), "removal": mark["removal"]},
            {"$unset": {"upload": "", "removing_time": "", "removal": ""}},
        )
        return result.matched_count > 0

    async def _digest(self, workspace: str, sha256: str, size_bytes: int) -> str:
        """Of the object, which is read while what was read before is being hashed.

        Of one with more than `size_bytes` only the beginning is read: it is not the blob.
        """
        place = await self._place(workspace, sha256)
        digest, key = hashlib.sha256(), id_of(workspace, sha256)
        self._checked[key] = 0
        pending: asyncio.Future[None] | None = None
        buffer = bytearray()
        try:
            async for chunk in place.store.read(place.prefix, sha256):
                buffer += chunk
                if self._checked.get(key, 0) + len(buffer) > size_bytes:
                    break
                if len(buffer) < _HASH_BYTES:
                    continue
                if pending is not None:
                    await pending
                pending = asyncio.ensure_future(asyncio.to_thread(digest.update, bytes(buffer)))
                self._checked[key] = self._checked.get(key, 0) + len(buffer)
                buffer.clear()
        finally:
            if pending is not None:
                await pending
        digest.update(buffer)
        self._checked[key] = self._checked.get(key, 0) + len(buffer)
        return digest.hexdigest()

    async def run(self) -> None:
        """For ever, once an hour: drops uploads of which nobody has asked for a part for seven days."""
        try:
            while True:
                try:
                    await self.sweep(datetime.now(UTC) - _ABANDONED)
                except Exception as error:
                    log.warning("Uploads that were given up cannot be dropped now: %s", error)
                await asyncio.sleep(_SWEEP_SECONDS)
        finally:
            checks = list(self._checks.values())
            for task in checks:
                task.cancel()
            await asyncio.gather(*checks, return_exceptions=True)

    async def sweep(self, cutoff: datetime) -> None:
        """Drops what was given up before `cutoff`, also what a crash left without a document."""
        given_up = {"upload.id": {"$exists": True}, "seen_time": {"$lt": cutoff}}
        async for document in self._blobs.find(given_up):
            await self._give_up({**given_up, "_id": document["_id"]})
        async for begun in self._platform.uploads():
            known = await self._blobs.find_one({"upload.id": begun.upload_id}, {"_id": 1})
            if known is None and begun.begin_time is not None and begun.begin_time < cutoff:
                await self._platform.drop(begun)
                log.info("An upload of %s that nobody knows was dropped", begun.key)

    async def _give_up(self, where: Document) -> None:
        """A store that is away holds up no other upload: the next sweep asks it again."""
        key = where["_id"]
        workspace, _, sha256 = key.partition("/")
        try:
            # It may have been put together and never been checked.
            if await self._discard(workspace, sha256, where):
                log.info("The upload of %s, which nobody went on with, was dropped", key)
        except PlatformError as error:
            log.warning("The upload of %s, which nobody went on with, stays for now: %s", key, error)


def _not_found(sha256: str) -> FailedPrecondition:
    return FailedPrecondition(
        "UPLOAD_NOT_FOUND", f"There is no upload of {sha256} in parts.", "Ask PrepareUploads anew."
    )


def _being_checked(sha256: str) -> Unavailable:
    return Unavailable(
        "BLOB_BEING_CHECKED", f"An upload of {sha256} with another size is being checked.", "Try again."
    )
