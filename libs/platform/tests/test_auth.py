"""How long a verifier trusts a key; the tokens that `secrets` makes are verified in its own tests."""

import time
from types import SimpleNamespace

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from stellwerk_platform import auth
from stellwerk_platform.auth import TokenVerifier
from stellwerk_platform.errors import Unauthenticated, Unavailable


class Keys:
    """A source of keys that can retire one, or be away."""

    def __init__(self) -> None:
        self._private = Ed25519PrivateKey.generate()
        self.published = {"k:1": self._private.public_key().public_bytes_raw()}
        self.is_away = False

    async def signing_keys(self) -> dict[str, bytes]:
        if self.is_away:
            raise Unavailable("SECRETS_UNAVAILABLE", "away")
        return dict(self.published)

    async def exchange(self, api_key: str) -> str:
        raise NotImplementedError

    def token(self) -> str:
        claims = {
            "iss": auth.ISSUER,
            "aud": auth.ISSUER,
            "sub": "users/owner",
            "role": "User",
            "exp": time.time() + 3_600,
        }
        return jwt.encode(claims, self._private, algorithm="EdDSA", headers={"kid": "k:1"})


async def test_a_retired_key_ends_also_for_tokens_that_were_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = Keys()
    verifier, token = TokenVerifier(keys), keys.token()
    now = time.monotonic()
    assert (await verifier.verify(token)).role == "User"
    keys.published = {}
    assert (await verifier.verify(token)).role == "User"
    # The clock of this module alone: the event loop has services of other tests on it.
    monkeypatch.setattr(auth, "time", SimpleNamespace(monotonic=lambda: now + 310, time=time.time))
    with pytest.raises(Unauthenticated):
        await verifier.verify(token)


async def test_known_keys_stay_while_secrets_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = Keys()
    verifier, token = TokenVerifier(keys), keys.token()
    monkeypatch.setattr(auth, "_KEY_LIFE_SECONDS", -1.0)
    await verifier.verify(token)
    keys.is_away = True
    assert (await verifier.verify(token)).role == "User"
    with pytest.raises(Unavailable):
        await TokenVerifier(keys).verify(token)
