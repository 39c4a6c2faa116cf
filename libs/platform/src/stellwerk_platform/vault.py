"""The Vault API through hvac, which is synchronous: every call runs in a thread."""

import asyncio
import base64
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import hvac
import hvac.exceptions
import requests

from stellwerk_platform.errors import FailedPrecondition, Unauthenticated, Unavailable

log = logging.getLogger(__name__)
T = TypeVar("T")


class Vault:
    """A client that logs in with AppRole credentials and renews its token."""

    def __init__(self, url: str, role_id: str, secret_id: str) -> None:
        self._client = hvac.Client(url=url, timeout=10)
        self._login = {"role_id": role_id, "secret_id": secret_id}
        self._renew_time = 0.0
        self._lock = asyncio.Lock()

    async def call(self, work: Callable[[hvac.Client], T]) -> T:
        """Runs `work` with a logged-in client; raises `Unavailable` when Vault does not answer."""
        await self._log_in()
        try:
            return await self._guarded(lambda: work(self._client))
        except hvac.exceptions.Forbidden:
            # Vault may have lost or revoked the token before its time; a policy refuses the second time too.
            self._renew_time = 0.0
            await self._log_in()
            return await self._guarded(lambda: work(self._client))

    async def _log_in(self) -> None:
        async with self._lock:
            if time.monotonic() < self._renew_time:
                return
            try:
                answer = await self._guarded(lambda: self._client.auth.approle.login(**self._login))
            except hvac.exceptions.VaultError as error:
                raise FailedPrecondition(
                    "VAULT_LOGIN_REFUSED",
                    f"Vault refuses this service's AppRole credentials: {str(error)[:300]}",
                    "Check STELLWERK_VAULT_ROLE_ID and STELLWERK_VAULT_SECRET_ID.",
                ) from error
            self._renew_time = time.monotonic() + answer["auth"]["lease_duration"] / 2

    async def check_login(self, role_id: str, secret_id: str) -> None:
        """Raises `Unauthenticated` unless these AppRole credentials are right."""

        def login() -> None:
            client = hvac.Client(url=self._client.url, timeout=10)
            answer = client.auth.approle.login(role_id=role_id, secret_id=secret_id, use_token=False)
            # Only the proof is wanted, not the Vault token; where a policy keeps it, it ends by itself.
            client.token = answer["auth"]["client_token"]
            with suppress(hvac.exceptions.Forbidden):
                client.auth.token.revoke_self()

        try:
            await self._guarded(login)
        except hvac.exceptions.VaultError as error:
            raise Unauthenticated(
                "APPROLE_INVALID", "The AppRole credentials are not valid.", "Check role id and secret id."
            ) from error

    async def sign(self, key: str, version: int, payload: bytes) -> str:
        """An Ed25519 signature by a version of a transit key, base64url without padding as JWS wants it."""

        def sign(client: hvac.Client) -> str:
            answer = client.secrets.transit.sign_data(
                name=key,
                hash_input=base64.b64encode(payload).decode(),
                key_version=version,
                marshaling_algorithm="jws",
            )
            return str(answer["data"]["signature"]).split(":", 2)[2]

        return await self.call(sign)

    async def public_keys(self, key: str) -> dict[int, bytes]:
        """Raw Ed25519 public keys of a transit key, by version."""

        def read(client: hvac.Client) -> dict[int, bytes]:
            versions = client.secrets.transit.read_key(name=key)["data"]["keys"]
            return {int(number): base64.b64decode(value["public_key"]) for number, value in versions.items()}

        return await self.call(read)

    async def _guarded(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.to_thread(work)
        except (
            requests.RequestException,
            hvac.exceptions.VaultDown,
            hvac.exceptions.VaultNotInitialized,
            hvac.exceptions.BadGateway,
            hvac.exceptions.RateLimitExceeded,
            hvac.exceptions.InternalServerError,
        ) as error:
            # The text names addresses, which are nothing for callers.
            log.warning("Vault does not answer: %s", str(error)[:300])
            raise Unavailable(
                "VAULT_UNAVAILABLE", "Vault does not answer.", "Check that it runs and is unsealed."
            ) from error
