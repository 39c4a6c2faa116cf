"""ID tokens of the configured OpenID provider (OpenID Connect Core 1.0, section 3.1.3.7).

The protocol's parts come from PyJWT; here is what is asked of a token, and how much work
strangers may cause: keys are fetched again at most once a second.
"""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import httpx
import jwt

from stellwerk_platform.errors import FailedPrecondition, PlatformError, Unauthenticated, Unavailable
from stellwerk_secrets.config import is_loopback

# Signed with a private key: never "none", never a secret that two share.
_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
_LENGTH = 16_384
_LEEWAY_SECONDS = 30
_AGE_SECONDS = 600
_DISCOVERY_SECONDS = 3_600.0
_KEYS_SECONDS = 300.0
_COOLDOWN_SECONDS = 1.0
_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True)
class Account:
    """Who has signed in at the provider."""

    issuer: str
    subject: str
    email: str
    email_verified: bool
    display_name: str
    # Until when, in seconds since 1970, the token must be remembered as used.
    expire_time: int


class IdTokens:
    """Verifies ID tokens of one issuer for the given client ids, at least one."""

    def __init__(self, issuer: str, client_ids: tuple[str, ...]) -> None:
        self.issuer = issuer
        self._client_ids = [client for client in client_ids if client]
        self._is_local = is_loopback(issuer)
        self._keys: jwt.PyJWKClient | None = None
        self._discovered = 0.0
        self._lock = asyncio.Lock()

    async def verify(self, token: str, nonce: str) -> Account:
        """The account that a token is about; raises `Unauthenticated`, or `Unavailable` without provider."""
        if len(token) > _LENGTH:
            raise _invalid("it is too long")
        keys = await self._key_client()
        try:
            key = await asyncio.to_thread(keys.get_signing_key_from_jwt, token)
            claims = jwt.decode(
                token,
                key,
                algorithms=_ALGORITHMS,
                audience=self._client_ids,
                issuer=self.issuer,
                leeway=_LEEWAY_SECONDS,
                options={"require": ["iss", "aud", "sub", "exp", "iat"]},
            )
        except jwt.PyJWKClientConnectionError as error:
            raise self.unavailable() from error
        except jwt.PyJWTError as error:
            raise _invalid(str(error)) from None
        self._check(claims, nonce)
        return _account(claims)

    def _check(self, claims: dict[str, Any], nonce: str) -> None:
        audience = claims["aud"]
        if isinstance(audience, list) and len(audience) > 1 and claims.get("azp") not in self._client_ids:
            raise _invalid("it was made for somebody else")
        # A token of a browser's login has one, and must not pass as that of another login.
        if claims.get("nonce", "") != nonce:
            raise _invalid("it belongs to another login")
        if time.time() - float(claims["iat"]) > _AGE_SECONDS:
            raise _invalid("it is too old")

    async def _key_client(self) -> jwt.PyJWKClient:
        async with self._lock:
            if self._keys is None or time.monotonic() - self._discovered > _DISCOVERY_SECONDS:
                try:
                    uri = await self._discover()
                except PlatformError:
                    if self._keys is None:
                        raise
                    return self._keys
                if self._keys is None or self._keys.uri != uri:
                    self._keys = jwt.PyJWKClient(
                        uri,
                        lifespan=_KEYS_SECONDS,
                        timeout=_TIMEOUT_SECONDS,
                        cooldown_duration=_COOLDOWN_SECONDS,
                    )
                self._discovered = time.monotonic()
            return self._keys

    async def _discover(self) -> str:
        """Where the provider's keys are (OpenID Connect Discovery 1.0)."""
        url = f"{self.issuer.rstrip('/')}/.well-known/openid-configuration"
        try:
            async with httpx.AsyncClient(timeout=_TIMEOUT_SECONDS, trust_env=not self._is_local) as client:
                response = await client.get(url)
                response.raise_for_status()
                document = response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise self.unavailable() from error
        if document.get("issuer") != self.issuer or not isinstance(document.get("jwks_uri"), str):
            raise FailedPrecondition(
                "OIDC_MISCONFIGURED",
                f"{url} is not the configuration of {self.issuer}.",
                "Set STELLWERK_OIDC_ISSUER to the issuer exactly as the provider spells it.",
            )
        return str(document["jwks_uri"])

    def unavailable(self) -> Unavailable:
        """The error for a provider that does not answer."""
        return Unavailable(
            "OIDC_UNAVAILABLE",
            f"The OpenID provider {self.issuer} does not answer.",
            "Try again later; API keys and invitations still work: stellwerk login --key.",
        )


def _account(claims: dict[str, Any]) -> Account:
    return Account(
        issuer=str(claims["iss"]),
        subject=str(claims["sub"]),
        email=str(claims.get("email", "")).lower(),
        email_verified=claims.get("email_verified") is True,
        display_name=str(claims.get("name", "")),
        expire_time=int(claims["exp"]) + _LEEWAY_SECONDS,
    )


def _invalid(why: str) -> Unauthenticated:
    return Unauthenticated(
        "ID_TOKEN_INVALID", f"The ID token is not valid: {why[:200]}.", "Sign in again: stellwerk login."
    )
