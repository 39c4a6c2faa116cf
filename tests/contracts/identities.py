"""Everybody who may call: people with each role, strangers, machines, and keys that are good no more."""

import base64
import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stellwerk_launcher.credentials import LAUNCHER, Credentials
from stellwerk_launcher.testing import logged_in
from stellwerk_platform.vault import Vault
from stellwerk_secrets.domain import Identity, key_id, signing_input
from stellwerk_secrets.issuer import KEY

LIFE_SECONDS = 3_600


@dataclass(frozen=True)
class Somebody:
    """A caller: how a test names it, its token, and what the rules look at."""

    name: str
    token: str = field(repr=False)
    subject: str = ""
    # Of the token; "" for who is not known at all.
    role: str = ""
    administrator: bool = False
    # Role by workspace id.
    roles: Mapping[str, str] | None = None

    def __repr__(self) -> str:
        return self.name


class Signer:
    """Signs tokens as `secrets` does."""

    def __init__(self, status: Mapping[str, Any]) -> None:
        folder = Path(status["owner_key_file"]).parent
        credentials = Credentials.load_or_create(folder / "credentials.json")
        with logged_in(status["vault_url"], credentials.vault[LAUNCHER]) as operator:
            secret_id = operator.new_secret_id("secrets", only=False)
        self._vault = Vault(status["vault_url"], "secrets", secret_id)

    async def token(self, identity: Identity, expires_in_seconds: int = LIFE_SECONDS) -> str:
        """A token of this identity."""
        now = int(time.time())
        version = max(await self._vault.public_keys(KEY))
        payload = signing_input(
            key_id(KEY, version), identity, str(uuid.uuid4()), now, now + expires_in_seconds
        )
        return f"{payload.decode()}.{await self._vault.sign(KEY, version, payload)}"

    async def token_of(self, claims: Mapping[str, object]) -> str:
        """A token with whatever claims, rightly signed."""
        version = max(await self._vault.public_keys(KEY))
        header = {"alg": "EdDSA", "typ": "JWT", "kid": key_id(KEY, version)}
        parts = [
            base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, claims)
        ]
        payload = b".".join(parts)
        return f"{payload.decode()}.{await self._vault.sign(KEY, version, payload)}"

    async def somebody(
        self, name: str, identity: Identity, roles: Mapping[str, str] | None = None
    ) -> Somebody:
        """Somebody with a token."""
        token = await self.token(identity)
        return Somebody(name, token, identity.subject, identity.role, identity.administrator, roles)
