"""Numbered versions in MongoDB."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from google.protobuf.message import Message
from pymongo import ASCENDING, DESCENDING, IndexModel, ReturnDocument
from pymongo.errors import DuplicateKeyError

from stellwerk_platform import names
from stellwerk_platform.documents import Document, from_document
from stellwerk_platform.journal import Fact
from stellwerk_platform.mongo import Collection, Database, Transaction, missing, stamp

V = TypeVar("V", bound=Message)
_LATEST = "latest"


def _extra(resource: Message) -> Document:
    """What versions are listed by: `workspaces/demo/models/digits` and `workspaces/demo`."""
    name: str = resource.name  # type: ignore[attr-defined]  # every resource has a name
    parent = names.parent_of(name)
    return {"parent": parent, "workspace": names.parent_of(parent)}


class VersionStore(Collection[V]):
    """The versions of one kind of thing."""

    def __init__(self, database: Database, name: str, kind: type[V]) -> None:
        indexes = [
            IndexModel([("parent", ASCENDING), ("version", DESCENDING)], name="parent_version"),
            IndexModel([("workspace", ASCENDING), ("create_time", DESCENDING)], name="workspace_time"),
            IndexModel([("workspace", ASCENDING), ("files.sha256", ASCENDING)], name="workspace_blobs"),
        ]
        super().__init__(database, name, kind, indexes=indexes, extra=_extra)
        self._counters = database.raw[f"{name}_counters"]

    async def create_next(self, parent: str, build: Callable[[int], V], request_id: str) -> V:
        """Stores what `build` makes of the next number; numbers are given once and have no gaps."""

        async def work(tx: Transaction) -> V:
            counter = await self._counters.find_one_and_update(
                {"_id": parent},
                {"$inc": {"last": 1}},
                upsert=True,
                return_document=ReturnDocument.AFTER,
                session=tx.session,
            )
            return await self.create_in(
                tx,
                build(counter["last"]),
                Fact("created", "REQUESTED", f"Version {counter['last']}."),
                request_id,
            )

        while True:
            if (existing := await self.created_by(request_id)) is not None:
                return existing
            try:
                return await self.database.commit(work)
            except DuplicateKeyError:
                # Somebody else made the first version, or the same request, in the same moment.
                continue

    async def delete(self, name: str) -> V:
        """Removes a version; its number is not given again. Returns it as it was; raises `NotFound`."""

        async def work(tx: Transaction) -> V:
            version = await self.get(name, tx.session)
            stamp(version)
            await self.raw.delete_one({"_id": name}, session=tx.session)
            tx.record(version, Fact("deleted", "REQUESTED"))
            return version

        return await self.database.commit(work)

    async def resolve(self, name: str) -> V:
        """The version that `name` says, which may be "latest"; raises `NotFound`."""
        if names.id_of(name) != _LATEST:
            return await self.get(name)
        newest = await self.newest(names.parent_of(name))
        if newest is None:
            raise missing(self._kind, name)
        return newest

    async def newest(self, parent: str) -> V | None:
        """The version with the highest number."""
        document = await self.raw.find_one({"parent": parent}, sort=[("version", DESCENDING)])
        return None if document is None else from_document(self._kind, document)

    async def referred(self, workspace: str, digests: Sequence[str]) -> set[str]:
        """Those of the blobs that a version in the workspace names."""
        pipeline: list[Document] = [
            {"$match": {"workspace": workspace, "files.sha256": {"$in": list(digests)}}},
            {"$project": {"files.sha256": 1}},
            {"$unwind": "$files"},
            {"$match": {"files.sha256": {"$in": list(digests)}}},
            {"$group": {"_id": "$files.sha256"}},
        ]
        return {document["_id"] async for document in self.raw.aggregate(pipeline)}

    async def page_below(self, parent: str, size: int, token: str) -> tuple[list[V], str]:
        """Versions of one thing, or of all in the workspace when its id is "-", newest first."""
        if names.id_of(parent) == names.WILDCARD:
            where: Document = {"workspace": names.parent_of(parent)}
            return await self.page(where, size, token, key="create_time", descending=True)
        return await self.page({"parent": parent}, size, token, key="version", descending=True)
