"""Subscriptions in MongoDB. What a password is known by lies beside the message and is in no event."""

from pymongo import ASCENDING, IndexModel

from stellwerk_platform import names
from stellwerk_platform.documents import Document, from_document, now
from stellwerk_platform.errors import ResourceExhausted
from stellwerk_platform.journal import Fact
from stellwerk_platform.mongo import Collection, Database, Transaction
from stellwerk_protos.secrets.v1.subscriptions_pb2 import Subscription
from stellwerk_secrets.subscriptions.domain import MAXIMUM_LIVING, is_living

_DIGEST, _OWNER, _START = "password_sha256", "owner", "start_sequence"


class Subscriptions:
    """All subscriptions, also those that have ended."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.all = Collection(
            database,
            "subscriptions",
            Subscription,
            indexes=[
                IndexModel([(_OWNER, ASCENDING), ("create_time", ASCENDING)], name="owner"),
                IndexModel([("consumer", ASCENDING)], name="consumer", unique=True),
                IndexModel([("revoke_time", ASCENDING)], name="revoke_time"),
            ],
            extra=lambda subscription: {_OWNER: names.parent_of(subscription.name)},
        )

    async def open(self) -> None:
        """Creates collection and indexes."""
        await self.all.open()

    async def create(self, subscription: Subscription, digest: str, start_sequence: int) -> Subscription:
        """Raises `AlreadyExists`, and `ResourceExhausted` for a person with too many."""
        owner = names.parent_of(subscription.name)
        living = [item for item in await self.all.all({_OWNER: owner, **_NOT_REVOKED}) if is_living(item)]
        if len(living) >= MAXIMUM_LIVING:
            raise ResourceExhausted(
                "TOO_MANY_SUBSCRIPTIONS",
                f"{owner} has {MAXIMUM_LIVING} subscriptions.",
                "Revoke one: stellwerk events credentials revoke.",
            )

        async def work(tx: Transaction) -> Subscription:
            created = await self.all.create_in(tx, subscription, Fact("created", "SUBSCRIPTION_CREATED"))
            beside = {_DIGEST: digest, _START: start_sequence}
            await self.all.raw.update_one({"_id": created.name}, {"$set": beside}, session=tx.session)
            return created

        if await self.all.find(subscription.name) is not None:
            return await self.all.create(subscription, Fact("created", "SUBSCRIPTION_CREATED"))
        return await self._database.commit(work)

    async def revoke(self, name: str) -> Subscription:
        """Raises `NotFound`."""

        def change(subscription: Subscription) -> Fact | None:
            if subscription.HasField("revoke_time"):
                return None
            subscription.revoke_time.CopyFrom(now())
            return Fact("revoked", "SUBSCRIPTION_REVOKED")

        return await self.all.update(name, change)

    async def leave(self, workspace: str) -> int:
        """Takes a workspace that is gone out of all subscriptions; ends those that had no other.

        Says how many there were.
        """

        def change(subscription: Subscription) -> Fact | None:
            if subscription.HasField("revoke_time") or workspace not in subscription.workspaces:
                return None
            others = [name for name in subscription.workspaces if name != workspace]
            if others:
                del subscription.workspaces[:]
                subscription.workspaces.extend(others)
                return Fact("updated", "WORKSPACE_DELETED", f"{workspace} is gone.")
            subscription.revoke_time.CopyFrom(now())
            return Fact("revoked", "WORKSPACE_DELETED", f"{workspace} is gone.")

        found = await self.all.all({"workspaces": workspace, **_NOT_REVOKED})
        for subscription in found:
            await self.all.update(subscription.name, change)
        return len(found)

    async def count(self, workspace: str) -> int:
        """How many read a workspace."""
        return await self.all.raw.count_documents({"workspaces": workspace, **_NOT_REVOKED})

    async def page(self, owner: str, size: int, token: str) -> tuple[list[Subscription], str]:
        """Those of a person, newest first."""
        return await self.all.page({_OWNER: owner}, size, token, key="create_time", descending=True)

    async def by_consumer(self, consumer: str) -> tuple[Subscription, str] | None:
        """The subscription and the digest of its password."""
        document = await self.all.raw.find_one({"consumer": consumer})
        if document is None:
            return None
        return from_document(Subscription, document), str(document.get(_DIGEST, ""))

    async def not_revoked(self) -> list[Subscription]:
        """All but the revoked ones."""
        return await self.all.all(_NOT_REVOKED)

    async def start_sequence(self, name: str) -> int:
        """From where on a consumer that is made anew has to deliver."""
        document = await self.all.raw.find_one({"_id": name}, {_START: 1})
        return int(document[_START]) if document is not None and document.get(_START) else 1

    async def move_start(self, name: str, sequence: int) -> None:
        """Remembers how far everything was acknowledged, before the consumer is made anew."""
        await self.all.raw.update_one({"_id": name}, {"$max": {_START: sequence}})


_NOT_REVOKED: Document = {"revoke_time": {"$exists": False}}
