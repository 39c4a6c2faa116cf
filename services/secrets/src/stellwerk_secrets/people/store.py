"""People, keys and invitations in MongoDB.

Digests of keys lie beside the messages and in no event; so does when a key was last used.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pymongo import ASCENDING, IndexModel
from pymongo.errors import DuplicateKeyError

from stellwerk_platform import names
from stellwerk_platform.documents import Document, from_document, now, timestamp
from stellwerk_platform.errors import AlreadyExists, ResourceExhausted, Unauthenticated
from stellwerk_platform.journal import Fact
from stellwerk_platform.mongo import Collection, Database, Session, Transaction
from stellwerk_protos.secrets.v1.users_pb2 import API_KEY_ORIGIN_INSTALLED, ApiKey, User
from stellwerk_secrets.domain import API_KEY_TOKEN_SECONDS
from stellwerk_secrets.people import domain
from stellwerk_secrets.people.domain import Issued
from stellwerk_secrets.revocations.store import Revocations

_DIGEST = "digest"
_OWNER = "owner"
_TOKENS_AFTER = "tokens_after"


@dataclass(frozen=True)
class Invitation:
    """What a new person gets once."""

    text: str
    expire_time: datetime


@dataclass(frozen=True)
class Found:
    """A key and its person; tokens are good only when they are issued after `tokens_after`."""

    user: User
    key: ApiKey
    tokens_after: datetime | None


class People:
    """The people of this installation, and with what they come in."""

    def __init__(self, database: Database, revocations: Revocations) -> None:
        self._database = database
        self._revocations = revocations
        self.users = Collection(
            database, "users", User, indexes=[_unique("email"), _unique("oidc_issuer", "oidc_subject")]
        )
        self.keys = Collection(
            database,
            "keys",
            ApiKey,
            indexes=[
                _unique(_DIGEST),
                IndexModel([(_OWNER, ASCENDING), ("create_time", ASCENDING)], name="owner"),
            ],
            extra=lambda key: {_OWNER: names.parent_of(key.name)},
        )
        self._invitations = database.raw["invitations"]
        self._locks = database.raw["locks"]

    async def open(self) -> None:
        """Creates collections and indexes."""
        await self.users.open()
        await self.keys.open()
        ends = IndexModel([("expire_time", ASCENDING)], name="expire_time", expireAfterSeconds=0)
        by_user = IndexModel([("user", ASCENDING)], name="user")
        await self._database.ensure("invitations", [ends, by_user], required=["user", "expire_time"])
        await self._database.ensure("locks")
        await self._locks.update_one({"_id": _ADMINISTRATORS}, {"$setOnInsert": {"count": 0}}, upsert=True)

    async def create_user(
        self, user: User, fact: Fact, request_id: str, *, invites: bool = True
    ) -> tuple[User, Invitation | None]:
        """A new person and the invitation; None for it when the request is a repetition."""
        invitation = domain.new_invitation()

        async def work(tx: Transaction) -> tuple[User, Invitation | None]:
            created = await self.users.create_in(tx, user, fact, request_id)
            return created, await self._invite(tx, created.name, invitation) if invites else None

        try:
            return await self._database.commit(work)
        except DuplicateKeyError as error:
            if (existing := await self.users.created_by(request_id)) is not None:
                return existing, None
            raise _taken(user, error) from None

    async def update_user(self, name: str, change: Callable[[User], Fact | None], etag: str = "") -> User:
        """Changes a person; their tokens end when that changes what they may do."""

        async def work(tx: Transaction) -> User:
            before = await self.users.get(name, tx.session)
            user = await self.users.update_in(tx, name, change, etag)
            if before.administrator and not user.administrator:
                await self._check_administrators(tx)
            if before.administrator != user.administrator:
                await self._end_tokens(tx, name, "ADMINISTRATOR_CHANGED")
            return user

        try:
            return await self._database.commit(work)
        except DuplicateKeyError as error:
            raise _taken(None, error) from None

    async def disable(self, name: str, actor: str) -> User:
        """Locks a person out, with all keys and invitations."""

        async def work(tx: Transaction) -> User:
            before = await self.users.get(name, tx.session)
            user = await self.users.update_in(tx, name, lambda found: domain.disable(found, actor))
            if user.revision == before.revision:
                return user
            if user.administrator:
                await self._check_administrators(tx)
            cause = tx.last_event()
            for key in await self._living(name, tx.session):
                await self._revoke_in(tx, key.name, "USER_DISABLED", f"{name} is disabled.", cause)
            # One for the person stands for those of all keys.
            await self._invitations.delete_many({"user": name}, session=tx.session)
            await self._end_tokens(tx, name, "USER_DISABLED", cause)
            return user

        return await self._database.commit(work)

    async def enable(self, name: str, actor: str) -> tuple[User, Invitation]:
        """Lets a person in again, by a new invitation; earlier ones end."""
        invitation = domain.new_invitation()

        async def work(tx: Transaction) -> tuple[User, Invitation]:
            user = await self.users.update_in(tx, name, lambda found: domain.enable(found, actor))
            return user, await self._invite(tx, name, invitation)

        return await self._database.commit(work)

    async def accept(self, digest: str, key: Callable[[str], ApiKey], issued: Issued) -> tuple[User, ApiKey]:
        """Uses up an invitation for a key of its person; raises `Unauthenticated`."""

        async def work(tx: Transaction) -> tuple[User, ApiKey]:
            found = await self._invitations.find_one_and_delete(
                {"_id": digest, "expire_time": {"$gt": datetime.now(UTC)}}, session=tx.session
            )
            if found is None:
                raise Unauthenticated(
                    "INVITATION_INVALID",
                    "The invitation is not valid: it may have been used, or its time is over.",
                    "Ask an administrator for a new one: stellwerk user enable NAME.",
                )
            user = await self.users.get(found["user"], tx.session)
            return user, await self._add_key_in(tx, key(user.name), issued.digest, user.name)

        return await self._database.commit(work)

    async def add_key(self, key: ApiKey, digest: str) -> ApiKey:
        """Stores a new key; raises `AlreadyExists` and `ResourceExhausted`."""
        try:
            owner = names.parent_of(key.name)
            return await self._database.commit(lambda tx: self._add_key_in(tx, key, digest, owner))
        except DuplicateKeyError:
            raise AlreadyExists(
                "ALREADY_EXISTS", f"{key.name} exists already.", "Choose another name."
            ) from None

    async def revoke_key(self, name: str, actor: str) -> ApiKey:
        """Ends a key and the tokens that came from it."""

        async def work(tx: Transaction) -> ApiKey:
            before = await self.keys.get(name, tx.session)
            key = await self._revoke_in(tx, name, "REQUESTED", f"{actor} revoked it.")
            if key.revision != before.revision:
                await self._end_tokens(tx, name, "KEY_REVOKED")
            return key

        return await self._database.commit(work)

    async def find_by_digest(self, digest: str) -> Found | None:
        """Whose key this is, and what is known of it."""
        document = await self.keys.raw.find_one({_DIGEST: digest})
        if document is None:
            return None
        owner = await self.users.raw.find_one({"_id": document[_OWNER]})
        if owner is None:
            return None
        return Found(from_document(User, owner), from_document(ApiKey, document), owner.get(_TOKENS_AFTER))

    async def find_user(self, where: Document) -> User | None:
        """The person with an e-mail address or OIDC account."""
        document = await self.users.raw.find_one(where)
        return None if document is None else from_document(User, document)

    async def install_owner(self, digest: str) -> None:
        """Gives `users/owner` the key of this digest; one that was installed before ends.

        A digest that was never seen makes the owner an administrator who may come in,
        whatever was changed before: whoever configures the installation owns it.
        """
        if not digest or await self.keys.raw.find_one({_DIGEST: digest}) is not None:
            return
        try:
            await self._database.commit(lambda tx: self._install_owner_in(tx, digest))
        except DuplicateKeyError:
            return  # another replica was faster

    async def _install_owner_in(self, tx: Transaction, digest: str) -> None:
        fact = Fact("created", "INSTALLED", "Owns the installation.", "services/secrets")
        if await self.users.find(domain.OWNER, tx.session) is None:
            owner = User(
                name=domain.OWNER, display_name="Owner", administrator=True, creator="services/secrets"
            )
            await self.users.create_in(tx, owner, fact)
        else:
            await self.users.update_in(tx, domain.OWNER, _restored)
        for key in await self._living(domain.OWNER, tx.session):
            if key.origin == API_KEY_ORIGIN_INSTALLED:
                await self._revoke_in(tx, key.name, "REPLACED", "Another key was installed.")
                await self._end_tokens(tx, key.name, "KEY_REVOKED")
        made = domain.make_key(
            domain.OWNER, "", "", API_KEY_ORIGIN_INSTALLED, display_name="Given at the start"
        )
        await self._add_key_in(tx, made, digest)

    async def _add_key_in(self, tx: Transaction, key: ApiKey, digest: str, actor: str = "") -> ApiKey:
        owner, moment = names.parent_of(key.name), datetime.now(UTC)
        await self._forget_ended(tx, owner, domain.forgettable_before(moment))
        living = [
            found for found in await self._living(owner, tx.session) if not domain.is_expired(found, moment)
        ]
        if len(living) >= domain.MAXIMUM_KEYS:
            raise ResourceExhausted(
                "TOO_MANY_KEYS",
                f"{owner} has {len(living)} keys.",
                "Revoke some: stellwerk key list; stellwerk key revoke NAME.",
            )
        fact = Fact("created", "REQUESTED", f"A key of {owner}.", actor)
        created = await self.keys.create_in(tx, key, fact)
        await self.keys.raw.update_one({"_id": key.name}, {"$set": {_DIGEST: digest}}, session=tx.session)
        return created

    async def _forget_ended(self, tx: Transaction, owner: str, before: datetime) -> None:
        ended: Document = {
            _OWNER: owner,
            "$or": [{"revoke_time": {"$lt": before}}, {"expire_time": {"$lt": before}}],
        }
        for key in await self.keys.all(ended, tx.session):
            await self.keys.raw.delete_one({"_id": key.name}, session=tx.session)
            key.revision += 1
            tx.record(key, Fact("removed", "ENDED", "It ended long ago."))

    async def _living(self, owner: str, session: Session) -> list[ApiKey]:
        return await self.keys.all({_OWNER: owner, "revoke_time": {"$exists": False}}, session)

    async def _revoke_in(self, tx: Transaction, name: str, code: str, text: str, cause: str = "") -> ApiKey:
        return await self.keys.update_in(
            tx, name, lambda found: _caused(domain.revoke(found, code, text, now()), cause)
        )

    async def _end_tokens(self, tx: Transaction, subject: str, code: str, cause: str = "") -> None:
        fact = Fact("created", code, f"Earlier tokens of {subject} end.", cause=cause or tx.last_event())
        is_person, moment = subject.count("/") == 1, datetime.now(UTC)
        if not is_person:
            # A key never comes back: a token that waits for Vault meanwhile is not good either.
            moment += timedelta(seconds=API_KEY_TOKEN_SECONDS)
        revocation = await self._revocations.revoke_in(tx, subject, moment, API_KEY_TOKEN_SECONDS, fact)
        if is_person:
            after = {"$set": {_TOKENS_AFTER: revocation.before_time.ToDatetime(UTC)}}
            await self.users.raw.update_one({"_id": subject}, after, session=tx.session)

    async def _invite(self, tx: Transaction, user: str, invitation: Issued) -> Invitation:
        expire_time = datetime.now(UTC) + timedelta(days=domain.INVITATION_DAYS)
        await self._invitations.delete_many({"user": user}, session=tx.session)
        document = {"_id": invitation.digest, "user": user, "expire_time": expire_time}
        await self._invitations.insert_one(document, session=tx.session)
        return Invitation(invitation.text, timestamp(expire_time).ToDatetime(UTC))

    async def _check_administrators(self, tx: Transaction) -> None:
        """Raises `FailedPrecondition` when none is left.

        The write has two such changes meet, which else would each count the other's person.
        """
        await self._locks.update_one({"_id": _ADMINISTRATORS}, {"$inc": {"count": 1}}, session=tx.session)
        left = await self.users.raw.count_documents(
            {"administrator": True, "disabled": {"$exists": False}}, limit=1, session=tx.session
        )
        if not left:
            raise domain.last_administrator()


_ADMINISTRATORS = "administrators"


def _unique(*fields: str) -> IndexModel:
    return IndexModel(
        [(field, ASCENDING) for field in fields],
        name=fields[0],
        unique=True,
        partialFilterExpression={field: {"$exists": True} for field in fields},
    )


def _taken(user: User | None, error: DuplicateKeyError) -> AlreadyExists:
    if "email" in (error.details or {}).get("keyPattern", {}) or user is None:
        return AlreadyExists(
            "EMAIL_TAKEN", "Another person has this e-mail address.", "Look for it in `stellwerk user list`."
        )
    return _exists(user.name)


def _exists(name: str) -> AlreadyExists:
    return AlreadyExists("ALREADY_EXISTS", f"{name} exists already.", "Choose another name.")


def _caused(fact: Fact | None, cause: str) -> Fact | None:
    return fact if fact is None else Fact(fact.verb, fact.code, fact.message, fact.actor, cause)


def _restored(owner: User) -> Fact | None:
    if owner.administrator and not owner.disabled:
        return None
    owner.administrator, owner.disabled = True, False
    return Fact("enabled", "INSTALLED", "Another key was installed.", "services/secrets")
