"""Revocations in MongoDB, until the last token that one matches has ended."""

import hashlib
from datetime import UTC, datetime, timedelta

import uuid_utils
from pymongo import ASCENDING, DESCENDING, IndexModel
from pymongo.errors import DuplicateKeyError

from stellwerk_platform.documents import from_document, timestamp
from stellwerk_platform.journal import Fact
from stellwerk_platform.mongo import Collection, Database, Transaction
from stellwerk_protos.secrets.v1.tokens_pb2 import Revocation

# A token that is being made while its subject is revoked may carry a moment after it.
_SETTLE = timedelta(seconds=1)
_MARGIN = timedelta(minutes=5)
# What fits into one answer.
_LISTED = 50_000


class Revocations(Collection[Revocation]):
    """What services ask for at their start; from then on the journal tells them."""

    def __init__(self, database: Database) -> None:
        ends = IndexModel([("expire_time", ASCENDING)], name="expire_time", expireAfterSeconds=0)
        super().__init__(database, "revocations", Revocation, indexes=[ends])

    async def living(self) -> list[Revocation]:
        """Those that a token may still match, the newest first, with no more of each than is needed."""
        after = {"expire_time": {"$gt": datetime.now(UTC)}}
        wanted = dict.fromkeys(("subject", "before_time", "expire_time"), 1)
        found = self.raw.find(after, wanted).sort("_id", DESCENDING).limit(_LISTED)
        return [from_document(Revocation, document) async for document in found]

    async def revoke_in(
        self, tx: Transaction, subject: str, moment: datetime, life_seconds: float, fact: Fact
    ) -> Revocation:
        """Ends the tokens of a subject that were issued until a second after `moment`.

        They live `life_seconds` at most.
        """
        return await self.create_in(tx, _made(str(uuid_utils.uuid7()), subject, moment, life_seconds), fact)

    async def revoke_once(
        self, cause: str, subject: str, moment: datetime, life_seconds: float, fact: Fact
    ) -> None:
        """The same because of an event, which may come twice."""
        identity = hashlib.sha256(f"{cause}\0{subject}".encode()).hexdigest()[:32]
        made = _made(identity, subject, moment, life_seconds)
        try:
            await self.database.commit(lambda tx: self.create_in(tx, made, fact))
        except DuplicateKeyError:
            return


def _made(identity: str, subject: str, moment: datetime, life_seconds: float) -> Revocation:
    moment += _SETTLE
    return Revocation(
        name=f"revocations/{identity}",
        subject=subject,
        before_time=timestamp(moment),
        expire_time=timestamp(moment + timedelta(seconds=life_seconds) + _MARGIN),
    )
