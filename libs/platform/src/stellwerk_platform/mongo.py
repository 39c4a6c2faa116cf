"""MongoDB through motor: the one place that knows the driver besides `store.py` files.

`Database.commit` writes resources and their journal entries in one transaction;
`Collection` stores one kind of resource, a proto message with `name`, `revision`,
`create_time` and `update_time`, and refuses lost updates by comparing `revision`.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from typing import Any, Generic, TypeVar

from bson import Binary
from bson.codec_options import CodecOptions
from google.protobuf.message import Message
from motor.motor_asyncio import AsyncIOMotorClient, AsyncIOMotorClientSession, AsyncIOMotorDatabase
from pymongo import ASCENDING, DESCENDING, IndexModel
from pymongo.errors import (
    CollectionInvalid,
    ConnectionFailure,
    DuplicateKeyError,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
)

from stellwerk_platform import failpoints, names, paging, telemetry
from stellwerk_platform.auth import current_actor, current_address
from stellwerk_platform.documents import Document, from_document, now, to_document
from stellwerk_platform.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
    translate,
)
from stellwerk_platform.journal import Entry, Fact, entry

log = logging.getLogger(__name__)
R = TypeVar("R", bound=Message)
T = TypeVar("T")
Session = AsyncIOMotorClientSession
_OUTBOX = "journal_outbox"
_REQUEST_ID = "request_id"
_EVENT_BYTES = 1024 * 1024
_SELECTION_MS = 15_000
BEING_DELETED = "WORKSPACE_BEING_DELETED"


def _away(error: Exception) -> Unavailable:
    # The text names addresses, which are nothing for callers.
    log.warning("MongoDB does not answer: %.300s", error)
    return Unavailable(
        "MONGODB_UNAVAILABLE",
        "MongoDB does not answer.",
        "Check that it runs as a replica set and that STELLWERK_MONGODB_URI is right.",
    )


# Connection lost, no primary, no server in time: the same call works later.
translate(ConnectionFailure, _away)


class _Conflict(Exception):
    """Another writer was faster; the change is computed anew."""


class Database:
    """The database of one service and its journal outbox."""

    def __init__(self, uri: str, namespace: str, service: str) -> None:
        self.namespace = namespace
        self.service = service
        self.client: AsyncIOMotorClient = AsyncIOMotorClient(
            uri, serverSelectionTimeoutMS=_SELECTION_MS, appname=f"stellwerk-{service}", retryWrites=True
        )
        options: CodecOptions[Document] = CodecOptions(tz_aware=True, tzinfo=UTC)
        self.raw: AsyncIOMotorDatabase = self.client.get_database(
            f"{namespace}_{service}", codec_options=options
        )
        self._outbox = self.raw[_OUTBOX]
        self._wake: Callable[[], None] = lambda: None
        # What the bus takes; an event that it does not take would hold up all that follow.
        self.maximum_event_bytes = _EVENT_BYTES
        # Names of workspaces that are being deleted: nothing new is stored in them (workspaces.py).
        self.closed: set[str] = set()

    async def open(self) -> None:
        """Waits until the server answers; raises `Unavailable` when it does not within 15 s."""
        try:
            await self.client.admin.command("ping")
            await self.ensure(_OUTBOX)
        except PyMongoError as error:
            raise _away(error) from error

    def close(self) -> None:
        """Closes the connections."""
        self.client.close()

    async def ensure(
        self, collection: str, indexes: Sequence[IndexModel] = (), required: Sequence[str] = ()
    ) -> None:
        """Creates a collection with its validator and indexes; declared again, nothing changes."""
        validator = {"$jsonSchema": {"bsonType": "object", "required": ["_id", *required]}}
        try:
            await self.raw.create_collection(collection, validator=validator)
        except CollectionInvalid:
            await self.raw.command({"collMod": collection, "validator": validator})
        except OperationFailure as error:
            if error.code != 48:  # NamespaceExists: another replica was faster
                raise
        if indexes:
            await self.raw[collection].create_indexes(list(indexes))

    def on_commit(self, wake: Callable[[], None]) -> None:
        """Calls `wake` after each commit that wrote journal entries."""
        self._wake = wake

    async def commit(self, work: Callable[["Transaction"], Awaitable[T]]) -> T:
        """Runs `work` in a transaction, again when MongoDB asks for it, and wakes the relay."""
        async with await self.client.start_session() as session:
            attempts = count()

            async def callback(session: Session) -> T:
                # The driver repeats at once; a conflict needs a moment, the longer the more often.
                if (attempt := next(attempts)) > 0:
                    await asyncio.sleep(random.uniform(0, min(0.002 * 2**attempt, 0.25)))
                transaction = Transaction(self, session)
                try:
                    result = await work(transaction)
                    await self._record(transaction)
                except ServerSelectionTimeoutError as error:
                    # It has been waited for already; the driver would do so again and again, for two minutes.
                    raise _away(error) from error
                failpoints.hit("store.before_commit")
                return result

            result = await session.with_transaction(callback)
        failpoints.hit("store.committed")
        self._wake()
        return result

    async def _record(self, transaction: "Transaction") -> None:
        documents = [
            {
                "_id": item.id,
                "resource": item.resource,
                "subject": item.subject,
                "body": Binary(item.body),
                "revision": item.revision,
            }
            for item in transaction.entries
        ]
        if documents:
            await self._outbox.insert_many(documents, session=transaction.session)

    async def pending(self, limit: int) -> list[Entry]:
        """The oldest journal entries that are not known to be published.

        As of one moment: a plain read could miss an entry that is committed while it
        goes on, and find the next one of the same resource.
        """
        async with await self.client.start_session(
            snapshot=True  # type: ignore[call-arg]  # motor's stub forgets it
        ) as session:
            found = self._outbox.find(session=session).sort("_id", ASCENDING).limit(limit)
            documents = await found.to_list(limit)
        return [
            Entry(d["_id"], d["resource"], d["subject"], bytes(d["body"]), d["revision"]) for d in documents
        ]

    def check_open(self, name: str) -> None:
        """Raises `FailedPrecondition` for a new resource in a workspace that is being deleted."""
        if self.closed and (workspace := f"workspaces/{names.workspace_of(name)}") in self.closed:
            raise being_deleted(workspace)

    async def remove(self, ids: list[str]) -> None:
        """Forgets published journal entries."""
        await self._outbox.delete_many({"_id": {"$in": ids}})


class Transaction:
    """One transaction: its session for reads and writes, and the journal entries it will hold."""

    def __init__(self, database: Database, session: Session) -> None:
        self.session = session
        self.entries: list[Entry] = []
        self._database = database

    def record(self, resource: Message, fact: Fact) -> None:
        """Adds a journal entry for the new state of a resource.

        The caller is the default actor, and the trace of the call the default cause.
        """
        fact = replace(
            fact,
            actor=fact.actor or current_actor(self._database.service),
            cause=fact.cause or telemetry.trace_id(),
            address=fact.address or current_address(),
        )
        made = entry(self._database.namespace, self._database.service, resource, fact)
        if len(made.body) > self._database.maximum_event_bytes:
            raise InvalidArgument(
                "RESOURCE_TOO_LARGE",
                f"{made.resource[:200]} has {len(made.body):,} bytes as a journal event, over "
                f"{self._database.maximum_event_bytes:,}.",
                "Use fewer or shorter entries: for files, pack them into an archive.",
            )
        self.entries.append(made)

    def last_event(self, otherwise: str = "") -> str:
        """The id of the entry recorded last: the cause of what follows from it in this transaction."""
        return self.entries[-1].id if self.entries else otherwise


# Writes more into the transaction that creates a resource.
Beside = Callable[[Transaction, R], Awaitable[None]]


class Collection(Generic[R]):
    """The resources of one kind. `extra` gives fields that are stored beside the message."""

    def __init__(
        self,
        database: Database,
        name: str,
        kind: type[R],
        *,
        indexes: Sequence[IndexModel] = (),
        extra: Callable[[R], Document] = lambda _: {},
    ) -> None:
        self.database = database
        self.raw = database.raw[name]
        self._name = name
        self._kind = kind
        self._indexes = indexes
        self._extra = extra

    async def open(self) -> None:
        """Creates collection and indexes."""
        request_id = IndexModel(
            [(_REQUEST_ID, ASCENDING)],
            name=_REQUEST_ID,
            unique=True,
            partialFilterExpression={_REQUEST_ID: {"$exists": True}},
        )
        await self.database.ensure(
            self._name, [request_id, *self._indexes], required=["revision", "create_time", "update_time"]
        )

    async def get(self, name: str, session: Session | None = None) -> R:
        """Raises `NotFound`."""
        found = await self.find(name, session)
        if found is None:
            raise missing(self._kind, name)
        return found

    async def find(self, name: str, session: Session | None = None) -> R | None:
        """The resource, or None."""
        document = await self.raw.find_one({"_id": name}, session=session)
        return None if document is None else from_document(self._kind, document)

    async def page(
        self,
        where: Document,
        size: int,
        token: str,
        *,
        key: str = "_id",
        descending: bool = False,
    ) -> tuple[list[R], str]:
        """One page in the order of `key` (ties by name) and the token of the next one.

        It ends early where it would get too large for one answer.
        """
        size = paging.page_size(size)
        query = (self._name, sorted(where.items(), key=lambda item: item[0]), key, descending)
        position = paging.decode(token, *query)
        comparison = "$lt" if descending else "$gt"
        if position is not None and key == "_id":
            where = {"$and": [where, {"_id": {comparison: position[0]}}]}
        elif position is not None:
            value = _from_token(key, position[1])
            after = [{key: {comparison: value}}, {key: value, "_id": {comparison: position[0]}}]
            where = {"$and": [where, {"$or": after}]}
        order = DESCENDING if descending else ASCENDING
        sort = [(key, order)] if key == "_id" else [(key, order), ("_id", order)]
        items: list[R] = []
        room = paging.Room(size)
        last: Mapping[str, Any] = {}
        async for document in self.raw.find(where).sort(sort).limit(size + 1):
            item = from_document(self._kind, document)
            if not room.take(item.ByteSize()):
                return items, paging.encode([last["_id"], _to_token(last[key])], *query)
            items.append(item)
            last = document
        return items, ""

    async def all(self, where: Document, session: Session | None = None) -> list[R]:
        """All that match: for sets that are known to be small."""
        return [from_document(self._kind, d) async for d in self.raw.find(where, session=session)]

    async def create(
        self, resource: R, fact: Fact, request_id: str = "", beside: "Beside[R] | None" = None
    ) -> R:
        """Stores a new resource with its journal entry; `beside` writes more in the same transaction.

        Returns the first answer when the caller repeats `request_id`; raises
        `AlreadyExists` when the name is taken.
        """

        async def work(tx: Transaction) -> R:
            created = await self.create_in(tx, resource, fact, request_id)
            if beside is not None:
                await beside(tx, created)
            return created

        try:
            return await self.database.commit(work)
        except DuplicateKeyError:
            return await self.existing(resource, request_id)

    async def create_in(self, tx: Transaction, resource: R, fact: Fact, request_id: str = "") -> R:
        """The same inside a transaction; lets `DuplicateKeyError` through, which ends the transaction."""
        resource = _copy(resource)
        self.database.check_open(resource.name)  # type: ignore[attr-defined]  # every resource has a name
        stamp(resource)
        document = {**to_document(resource), **self._extra(resource)}
        if request_id:
            document[_REQUEST_ID] = request_key(request_id)
        await self.raw.insert_one(document, session=tx.session)
        failpoints.hit("store.resource_written")
        tx.record(resource, fact)
        return resource

    async def created_by(self, request_id: str) -> R | None:
        """What the caller's earlier request with this id created."""
        if not request_id:
            return None
        document = await self.raw.find_one({_REQUEST_ID: request_key(request_id)})
        return None if document is None else from_document(self._kind, document)

    async def existing(self, resource: R, request_id: str) -> R:
        """What a create that met a `DuplicateKeyError` answers; raises `AlreadyExists`."""
        existing = await self.created_by(request_id)
        if existing is not None:
            return existing
        name: str = resource.name  # type: ignore[attr-defined]  # every resource has a name
        raise AlreadyExists("ALREADY_EXISTS", f"{name} exists already.", "Choose another name.")

    async def update(self, name: str, change: Callable[[R], Fact | None], etag: str = "") -> R:
        """Applies `change` to the newest state and stores it with the fact that it returns.

        `change` may be called again when another writer was faster, and returns None
        when nothing is to be done. Raises `NotFound`, and `Aborted` when `etag` is
        not the current revision.
        """

        async def work(tx: Transaction) -> R:
            return await self.update_in(tx, name, change, etag)

        while True:
            try:
                return await self.database.commit(work)
            except _Conflict:
                continue

    async def update_in(
        self, tx: Transaction, name: str, change: Callable[[R], Fact | None], etag: str = ""
    ) -> R:
        """The same inside a transaction."""
        resource = await self.get(name, tx.session)
        revision: int = resource.revision  # type: ignore[attr-defined]  # every resource has a revision
        if etag and etag != str(revision):
            raise Aborted("REVISION_CHANGED", f"{name} has changed to revision {revision}.", "Read it again.")
        fact = change(resource)
        if fact is None:
            return resource
        stamp(resource)
        changes = {**to_document(resource), **self._extra(resource)}
        known = {"name", *(field.name for field in resource.DESCRIPTOR.fields)}
        gone = dict.fromkeys(known - changes.keys() - {"name"}, "")
        update: Document = {"$set": {key: value for key, value in changes.items() if key != "_id"}}
        if gone:
            update["$unset"] = gone
        result = await self.raw.update_one({"_id": name, "revision": revision}, update, session=tx.session)
        if result.matched_count == 0:
            raise _Conflict
        failpoints.hit("store.resource_written")
        tx.record(resource, fact)
        return resource


def being_deleted(workspace: str) -> FailedPrecondition:
    """The error for a workspace that takes nothing new any more."""
    return FailedPrecondition(
        BEING_DELETED,
        f"{workspace} is being deleted.",
        "Use another workspace, or create it again once it is gone.",
        {"workspace": workspace},
    )


def stamp(resource: Message) -> None:
    """Counts the revision and sets the times."""
    moment = now()
    resource.revision += 1  # type: ignore[attr-defined]  # every resource has these three
    if not resource.HasField("create_time"):
        resource.create_time.CopyFrom(moment)  # type: ignore[attr-defined]
    resource.update_time.CopyFrom(moment)  # type: ignore[attr-defined]


def _copy(resource: R) -> R:
    """A transaction may run more than once, each time from the same state."""
    copy = type(resource)()
    copy.CopyFrom(resource)
    return copy


def missing(kind: type[Message], name: str) -> NotFound:
    """The error for a resource that does not exist, with reason `<KIND>_NOT_FOUND`."""
    words = "".join(" " + c.lower() if c.isupper() else c for c in kind.DESCRIPTOR.name).strip()
    reason = words.upper().replace(" ", "_") + "_NOT_FOUND"
    return NotFound(reason, f"There is no {words} {name}.", f"List what there is, or create the {words}.")


def _to_token(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else value


def _from_token(key: str, value: object) -> object:
    return datetime.fromisoformat(str(value)) if key.endswith("_time") else value


def request_key(request_id: str) -> str:
    """Two callers may choose the same id by chance."""
    return f"{current_actor('')}:{request_id}"
