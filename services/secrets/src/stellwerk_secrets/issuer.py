"""Tokens signed by Vault transit, within the rate that Vault can sign.

A signature costs Vault some milliseconds of CPU, and one process of the platform may
ask for many tokens of the same identity. So a token is handed out again while more
than half its life is left, and what waits for Vault is bounded.
"""

import asyncio
import base64
import math
import time
import uuid
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import hvac
import hvac.exceptions
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from stellwerk_platform.errors import FailedPrecondition, Unavailable
from stellwerk_platform.vault import Vault
from stellwerk_protos.secrets.v1 import tokens_pb2
from stellwerk_secrets.domain import LOGIN_TOKEN_SECONDS, SELF, Identity, key_id, signing_input
from stellwerk_secrets.limits import Gate, patiently

KEY = "stellwerk-tokens"
_KEYS_SECONDS = 2.0
_SETTLE_SECONDS = 5.0
_SHARED_IDENTITIES = 10_000


class SigningKeys:
    """The versions of the signing key, remembered for some seconds.

    A new version is published at once and signs some seconds later, when every replica has
    published it: else a token could meet somebody who asks a replica that does not know its key yet.
    """

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        # By version: the raw public key, and when it was made in seconds since 1970.
        self._keys: dict[int, tuple[bytes, float]] = {}
        self._read_time = -math.inf
        self._lock = asyncio.Lock()

    async def _versions(self) -> Mapping[int, tuple[bytes, float]]:
        """The last known ones while Vault does not answer."""
        async with self._lock:
            if time.monotonic() - self._read_time > _KEYS_SECONDS:
                try:
                    self._keys = await self._vault.call(_read)
                except hvac.exceptions.VaultError as error:
                    raise _no_key(error) from error
                except Unavailable:
                    if not self._keys:
                        raise
                self._read_time = time.monotonic()
            return self._keys

    async def signing_version(self) -> int:
        """The version that signs now."""
        versions = await self._versions()
        known = time.time() - _SETTLE_SECONDS
        return max(
            (version for version, (_, made) in versions.items() if made < known), default=min(versions)
        )

    async def published(self) -> dict[str, bytes]:
        """Raw public keys by key id."""
        return {key_id(KEY, version): raw for version, (raw, _) in (await self._versions()).items()}

    async def rotate(self) -> tuple[str, bytes]:
        """Has Vault make a new version; its id and public key. Older ones stay published."""
        await self._vault.call(lambda client: client.secrets.transit.rotate_key(name=KEY))
        self.forget()
        versions = await self._versions()
        return key_id(KEY, max(versions)), versions[max(versions)][0]

    async def probe(self) -> None:
        """Has Vault sign something, and verifies it; raises what is wrong."""
        self.forget()
        keys, content = await self._versions(), uuid.uuid4().bytes
        version = await self.signing_version()
        signature = await self._vault.sign(KEY, version, content)
        raw = base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4))
        try:
            Ed25519PublicKey.from_public_bytes(keys[version][0]).verify(raw, content)
        except InvalidSignature as error:
            raise FailedPrecondition("VAULT_SIGNATURE_WRONG", "Vault's signature is not right.") from error

    def forget(self) -> None:
        """Has the next question reach Vault."""
        self._read_time = -math.inf


def _read(client: hvac.Client) -> dict[int, tuple[bytes, float]]:
    versions = client.secrets.transit.read_key(name=KEY)["data"]["keys"]
    return {
        int(number): (
            base64.b64decode(value["public_key"]),
            datetime.fromisoformat(value["creation_time"]).timestamp(),
        )
        for number, value in versions.items()
    }


@dataclass
class _Shared:
    """The last token of an identity, and who signed it."""

    version: int = 0
    token: tokens_pb2.Token = field(default_factory=tokens_pb2.Token)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Issuer:
    """Issues tokens."""

    def __init__(self, vault: Vault, keys: SigningKeys) -> None:
        self._vault = vault
        self._keys = keys
        self._gate = Gate(running=4, waiting=256)
        self._shared: OrderedDict[Identity, _Shared] = OrderedDict()

    async def shared(self, identity: Identity, life_seconds: float) -> tokens_pb2.Token:
        """A token that others of the same identity may have got too, with half its life left at least.

        While Vault does not answer, what is left of the last token has to do.
        """
        shared = self._shared.setdefault(identity, _Shared())
        self._shared.move_to_end(identity)
        if len(self._shared) > _SHARED_IDENTITIES:
            self._shared.popitem(last=False)
        async with shared.lock:
            version = await self._keys.signing_version()
            signed_by, token = shared.version, shared.token
            left = token.expire_time.seconds - time.time()
            if signed_by == version and left > life_seconds / 2:
                return token
            try:
                token = await self.issue(identity, life_seconds)
            except Unavailable:
                if signed_by == version and left > 0:
                    return token
                raise
            shared.version, shared.token = version, token
            return token

    async def issue(self, identity: Identity, life_seconds: float) -> tokens_pb2.Token:
        """A token of its own."""
        issue_time = round(time.time(), 3)
        token = tokens_pb2.Token()
        token.expire_time.seconds = int(issue_time + life_seconds)
        version = await self._keys.signing_version()
        payload = signing_input(
            key_id(KEY, version), identity, str(uuid.uuid4()), issue_time, token.expire_time.seconds
        )
        async with self._gate():
            signature = await self._sign(version, payload)
        token.token = f"{payload.decode()}.{signature}"
        return token

    async def _sign(self, version: int, payload: bytes) -> str:
        try:
            return await patiently(lambda: self._vault.sign(KEY, version, payload))
        except hvac.exceptions.VaultError as error:
            # The version may have been retired in this very moment.
            self._keys.forget()
            raise _no_key(error) from error


class OwnCredentials:
    """What this service shows to the others: it logs in to nobody."""

    def __init__(self, issuer: Issuer) -> None:
        self._issuer = issuer

    async def token(self) -> str:
        """A living token."""
        return (await self._issuer.shared(SELF, LOGIN_TOKEN_SECONDS)).token


def _no_key(error: Exception) -> FailedPrecondition:
    return FailedPrecondition(
        "SIGNING_KEY_MISSING",
        f"Vault does not let this service use the transit key {KEY}: {str(error)[:200] or 'not found'}",
        f"Create it ('vault secrets enable transit; vault write transit/keys/{KEY} type=ed25519') and let "
        f"the AppRole of secrets read transit/keys/{KEY} and update transit/sign/{KEY}.",
    )
