"""AppRole logins: proven by Vault, and remembered for a moment so that a burst of starts is cheap."""

import hashlib
import time

from stellwerk_platform.errors import Unauthenticated
from stellwerk_platform.vault import Vault
from stellwerk_secrets.domain import Identity, identity_of_approle
from stellwerk_secrets.limits import Gate, patiently

_REMEMBER_SECONDS = 60.0
_LIMIT = 200


class Logins:
    """Checks AppRole credentials."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        # Guesses are turned away before they can keep Vault from signing.
        self._gate = Gate(running=2, waiting=64)
        self._proven: dict[str, float] = {}

    async def check(self, role_id: str, secret_id: str) -> Identity:
        """Who has these credentials; raises `Unauthenticated` when they are wrong."""
        if not role_id or not secret_id or max(len(role_id), len(secret_id)) > _LIMIT:
            raise Unauthenticated(
                "APPROLE_INVALID", "The AppRole credentials are not valid.", "Check role id and secret id."
            )
        digest = hashlib.sha256(f"{role_id}\0{secret_id}".encode()).hexdigest()
        if self._proven.get(digest, 0.0) < time.monotonic():
            async with self._gate():
                await patiently(lambda: self._vault.check_login(role_id, secret_id))
            self._remember(digest)
        return identity_of_approle(role_id)

    def _remember(self, digest: str) -> None:
        now = time.monotonic()
        self._proven = {known: until for known, until in self._proven.items() if until > now}
        self._proven[digest] = now + _REMEMBER_SECONDS
