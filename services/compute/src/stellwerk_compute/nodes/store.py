"""Nodes in MongoDB. The end of a lease lies beside the node, outside the journal: it changes all the time."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta

from pymongo import ASCENDING, IndexModel

from stellwerk_compute.nodes import domain
from stellwerk_platform.errors import AlreadyExists
from stellwerk_platform.journal import Fact
from stellwerk_platform.mongo import Collection, Database, Transaction
from stellwerk_protos.compute.v1 import agents_pb2, computes_pb2

_LEASE = "lease_expire_time"
_READY = {"state": "NODE_STATE_READY"}


class NodeStore:
    """All nodes."""

    def __init__(self, database: Database, lease_seconds: float) -> None:
        self._collection = Collection(
            database,
            "nodes",
            computes_pb2.Node,
            indexes=[IndexModel([("state", ASCENDING), (_LEASE, ASCENDING)], name="lease")],
        )
        self._raw = self._collection.raw
        self.lease_seconds = lease_seconds

    async def open(self) -> None:
        """Creates the collection."""
        await self._collection.open()

    async def grant(self) -> None:
        """Gives every node one full lease: for a time in which nobody could renew one."""
        await self._raw.update_many(_READY, {"$set": {_LEASE: self._lease_end()}})

    def _lease_end(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self.lease_seconds)

    async def page(self, size: int, token: str) -> tuple[list[computes_pb2.Node], str]:
        """A page by name."""
        return await self._collection.page({}, size, token)

    async def ready(self) -> list[computes_pb2.Node]:
        """The nodes that take work."""
        return await self._collection.all(_READY)

    async def announce(self, announcement: agents_pb2.Announcement) -> datetime:
        """Creates or updates the node and starts its lease; returns the end of the lease."""
        node = computes_pb2.Node(name=announcement.node)
        if await self._collection.find(node.name) is None:
            with suppress(AlreadyExists):
                await self._collection.create(node, _registered(node, announcement))
        # The lease first: a node must never be READY with a lease that is over.
        lease_end = await self.renew(announcement.node)
        await self._collection.update(announcement.node, lambda found: domain.announce(found, announcement))
        return lease_end

    async def renew(self, node: str) -> datetime:
        """Renews the lease and returns its end."""
        lease_end = self._lease_end()
        await self._raw.update_one({"_id": node}, {"$set": {_LEASE: lease_end}})
        return lease_end

    async def next_expiry(self) -> datetime | None:
        """When the first lease ends, None without a ready node."""
        document = await self._raw.find_one(_READY, {_LEASE: 1}, sort=[(_LEASE, ASCENDING)])
        return None if document is None else document.get(_LEASE, datetime.now(UTC))

    async def expired(self) -> list[str]:
        """The ready nodes whose lease is over."""
        where = {**_READY, _LEASE: {"$lte": datetime.now(UTC)}}
        return [document["_id"] async for document in self._raw.find(where, {"_id": 1})]

    async def expire_in(self, tx: Transaction, node: str) -> bool:
        """Marks a node whose lease is still over; False when a heartbeat came in between."""
        where = {"_id": node, **_READY, _LEASE: {"$lte": datetime.now(UTC)}}
        if await self._raw.find_one(where, {"_id": 1}, session=tx.session) is None:
            return False
        await self._collection.update_in(tx, node, lambda found: domain.expire(found, self.lease_seconds))
        return True


def _registered(node: computes_pb2.Node, announcement: agents_pb2.Announcement) -> Fact:
    fact = domain.announce(node, announcement)
    assert fact is not None, "a new node always differs from an empty one"
    return fact
