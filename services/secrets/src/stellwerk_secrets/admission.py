"""Which key opens: known ones at once, guesses through a narrow gate.

A key that has opened before is known by its digest, so a flood of guesses keeps nobody
out who has been in; no address and no person is ever locked.
"""

import asyncio
from collections import OrderedDict
from datetime import UTC, datetime

from stellwerk_secrets import domain
from stellwerk_secrets.domain import Identity
from stellwerk_secrets.limits import Gate
from stellwerk_secrets.people.domain import is_expired
from stellwerk_secrets.people.store import People
from stellwerk_secrets.people.uses import Uses
from stellwerk_secrets.store import ServiceKeys

_KNOWN = 10_000


class Admission:
    """From the digest of a key to who it stands for."""

    def __init__(self, people: People, service_keys: ServiceKeys, uses: Uses) -> None:
        self._people = people
        self._service_keys = service_keys
        self._uses = uses
        self._gate = Gate(running=4, waiting=256)
        self._known: OrderedDict[str, None] = OrderedDict()

    async def admit(self, digest: str) -> tuple[Identity, float]:
        """Whom the key stands for, and how many seconds a token for it may live; `Unauthenticated`."""
        if digest in self._known:
            return await self._find(digest)
        async with self._gate():
            found = await self._find(digest)
        self._known[digest] = None
        if len(self._known) > _KNOWN:
            self._known.popitem(last=False)
        return found

    async def _find(self, digest: str) -> tuple[Identity, float]:
        found = await self._people.find_by_digest(digest)
        if found is None:
            identity = await self._service_keys.find(digest)
            if identity is None:
                raise domain.key_invalid()
            return identity, domain.API_KEY_TOKEN_SECONDS
        user, key = found.user, found.key
        moment = datetime.now(UTC)
        if key.HasField("revoke_time"):
            raise domain.key_invalid(f"The key {key.name} was revoked.")
        if is_expired(key, moment):
            raise domain.key_invalid(f"The key {key.name} has ended.")
        if user.disabled:
            raise domain.key_invalid(f"{user.name} is disabled.")
        if found.tokens_after is not None and found.tokens_after >= moment:
            # A token of this moment would be refused.
            await asyncio.sleep((found.tokens_after - moment).total_seconds() + 0.001)
        self._uses.note(key.name)
        life = float(domain.API_KEY_TOKEN_SECONDS)
        if key.HasField("expire_time"):
            life = min(life, (key.expire_time.ToDatetime(UTC) - moment).total_seconds())
        return Identity(
            user.name, "User", administrator=user.administrator, key=key.name, revision=user.revision
        ), life
