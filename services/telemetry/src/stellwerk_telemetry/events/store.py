"""The journal's index in MongoDB: a projection that can be dropped and filled again from the stream."""

from collections.abc import Sequence

from pymongo import ASCENDING, DESCENDING, IndexModel

from stellwerk_platform import paging
from stellwerk_platform.documents import Document
from stellwerk_platform.mongo import Database
from stellwerk_platform.names import WILDCARD
from stellwerk_protos.telemetry.v1 import telemetry_pb2
from stellwerk_telemetry.events.domain import to_proto
from stellwerk_telemetry.explain import domain as explain
from stellwerk_telemetry.explain.domain import Past
from stellwerk_telemetry.store import insert_missing

_COLLECTION = "events"


class Events:
    """Indexed journal events."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._raw = database.raw[_COLLECTION]

    async def open(self) -> None:
        """Creates collection and indexes."""
        indexes = [
            IndexModel([("workspace", ASCENDING), ("sequence", ASCENDING)], name="workspace"),
            IndexModel([("resource", ASCENDING), ("sequence", ASCENDING)], name="resource"),
            IndexModel([("trace_id", ASCENDING), ("sequence", ASCENDING)], name="trace"),
            IndexModel([("sequence", ASCENDING)], name="sequence"),
            # From a cause to what followed; the way back goes by `_id`.
            IndexModel(
                [("cause", ASCENDING), ("sequence", ASCENDING)],
                name="cause",
                partialFilterExpression={"cause": {"$gt": ""}},
            ),
        ]
        await self._database.ensure(_COLLECTION, indexes, required=["sequence", "resource", "type", "body"])

    async def insert(self, documents: Sequence[Document]) -> None:
        """Stores events; one that is there already stays as it is."""
        await insert_missing(self._raw, documents)

    async def holds(self, workspace: str) -> bool:
        """Whether anything has happened in this workspace."""
        return await self._raw.find_one({"workspace": workspace}, {"_id": 1}) is not None

    async def workspaces_of(self, trace_id: str) -> list[str]:
        """The workspaces in which a call has changed something; "" stands for outside of them all."""
        return [str(found) for found in await self._raw.distinct("workspace", {"trace_id": trace_id})]

    async def history(self, resource: str, limit: int) -> list[Past]:
        """The events of a resource, oldest first: of more than `limit` the first and the newest ones."""
        newest = await self._read({"resource": resource}, limit, DESCENDING)
        if len(newest) < limit:
            return newest[::-1]
        first = await self._read({"resource": resource}, 1, ASCENDING)
        return [*first, *newest[-2::-1]]

    async def by_id(self, ids: Sequence[str], workspace: str) -> list[Past]:
        """Events of a workspace, or of none, by their ids."""
        where = {"_id": {"$in": list(ids)}, "workspace": {"$in": [workspace, ""]}}
        return await self._read(where, len(ids), ASCENDING)

    async def caused_by(self, cause: str, workspace: str, limit: int) -> list[Past]:
        """The first events in a workspace that an event led to."""
        return await self._read({"cause": cause, "workspace": workspace}, limit, ASCENDING)

    async def _read(self, where: Document, limit: int, direction: int) -> list[Past]:
        cursor = self._raw.find(where, {"sequence": 1, "body": 1}).sort("sequence", direction).limit(limit)
        return [explain.read(d["sequence"], bytes(d["body"])) async for d in cursor]

    async def page(
        self,
        workspace: str,
        resource: str,
        trace_id: str,
        size: int,
        token: str,
        *,
        start: int = 0,
        newest_first: bool = False,
    ) -> tuple[list[telemetry_pb2.Event], str]:
        """One page in order, or in reverse; "-" is all workspaces, "" any resource or trace.

        None before the sequence `start`.
        """
        size = paging.page_size(size)
        order, beyond = (DESCENDING, "$lt") if newest_first else (ASCENDING, "$gt")
        query = ("events", workspace, resource, trace_id, order)
        position = paging.decode(token, *query)
        where: Document = {} if workspace == WILDCARD else {"workspace": workspace}
        where |= {key: value for key, value in (("resource", resource), ("trace_id", trace_id)) if value}
        where["sequence"] = {"$gte": start} | ({} if position is None else {beyond: int(position)})
        events: list[telemetry_pb2.Event] = []
        room = paging.Room(size)
        async for document in self._raw.find(where).sort("sequence", order).limit(size + 1):
            if not room.take(len(document["body"])):
                return events, paging.encode(events[-1].sequence, *query)
            events.append(to_proto(document["sequence"], bytes(document["body"])))
        return events, ""
