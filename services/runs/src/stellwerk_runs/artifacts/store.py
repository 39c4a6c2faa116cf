"""Artifacts in MongoDB: one document a file, and one a run that counts the calls for the journal."""

from collections.abc import Mapping, Sequence
from typing import Any

from pymongo import ASCENDING, IndexModel, UpdateOne
from pymongo.errors import DuplicateKeyError

from stellwerk_platform import paging
from stellwerk_platform.documents import Document
from stellwerk_platform.journal import Fact
from stellwerk_platform.mongo import Collection, Database, Transaction
from stellwerk_protos.common.v1.common_pb2 import File
from stellwerk_protos.runs.v1.artifacts_pb2 import ArtifactList


class ArtifactStore:
    """The two collections, and the transaction that writes both."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._files = database.raw["artifacts"]
        self._lists: Collection[ArtifactList] = Collection(database, "artifact_lists", ArtifactList)

    async def open(self) -> None:
        """Creates the collections."""
        by_blob = IndexModel([("sha256", ASCENDING)])
        await self._database.ensure("artifacts", [by_blob], ["path", "sha256"])
        await self._lists.open()

    async def record(self, run: str, files: Sequence[File]) -> None:
        """Adds or replaces files. What is recorded already as it is changes nothing."""

        async def work(tx: Transaction) -> None:
            changed = await self._changed(tx, run, files)
            if changed:
                await self._record_in(tx, run, changed)

        while True:
            try:
                await self._database.commit(work)
                return
            except DuplicateKeyError:
                # The first two calls for a run came at the same time.
                continue

    async def _changed(self, tx: Transaction, run: str, files: Sequence[File]) -> list[File]:
        keys = [_key(run, file.path) for file in files]
        cursor = self._files.find({"_id": {"$in": keys}}, session=tx.session)
        known = {document["path"]: _to_file(document) async for document in cursor}
        return [file for file in files if known.get(file.path) != file]

    async def _record_in(self, tx: Transaction, run: str, files: Sequence[File]) -> None:
        name = f"{run}/artifacts"
        fact = Fact("recorded", "UPLOADED", f"{len(files)} files were recorded.")

        def change(listing: ArtifactList) -> Fact:
            listing.ClearField("files")
            listing.files.extend(files)
            return fact

        if await self._lists.find(name, tx.session) is None:
            await self._lists.create_in(tx, ArtifactList(name=name, files=files), fact)
        else:
            await self._lists.update_in(tx, name, change)
        await self._files.bulk_write(
            [UpdateOne({"_id": _key(run, f.path)}, {"$set": _from_file(f)}, upsert=True) for f in files],
            session=tx.session,
        )

    async def page(self, run: str, path: str, size: int, token: str) -> tuple[list[File], str]:
        """One page of a file or of what lies below a folder, by path, and the token of the next one."""
        size = paging.page_size(size)
        after = paging.decode(token, "artifacts", run, path)
        # "0" follows "/", and "$" follows "#".
        where: Document = {"_id": {"$gt": _key(run, ""), "$lt": f"{run}$"}}
        if path:
            below = {"_id": {"$gt": _key(run, path + "/"), "$lt": _key(run, path + "0")}}
            where = {"$or": [{"_id": _key(run, path)}, below]}
        if after is not None:
            where = {"$and": [where, {"_id": {"$gt": _key(run, after)}}]}
        documents = await self._files.find(where).sort("_id", ASCENDING).limit(size + 1).to_list(size + 1)
        more = len(documents) > size
        token = paging.encode(documents[size - 1]["path"], "artifacts", run, path) if more else ""
        return [_to_file(document) for document in documents[:size]], token


def _key(run: str, path: str) -> str:
    return f"{run}#{path}"


def _from_file(file: File) -> Document:
    return {
        "path": file.path,
        "sha256": file.sha256,
        "size_bytes": file.size_bytes,
        "executable": file.executable,
    }


def _to_file(document: Mapping[str, Any]) -> File:
    return File(
        path=document["path"],
        sha256=document["sha256"],
        size_bytes=document["size_bytes"],
        executable=document["executable"],
    )
