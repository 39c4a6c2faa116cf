"""Tokens as NATS wants them: JSON Web Tokens signed with a NATS key (docs.nats.io, "Auth Callout").

Own code because no maintained Python library makes them: PyJWT does not know the
algorithm `ed25519-nkey`, and the NATS libraries for tokens are for Go.
"""

import base64
import hashlib
import json
import time
from typing import Any

import nkeys

_HEADER = {"typ": "JWT", "alg": "ed25519-nkey"}


class Signer:
    """Signs with the seed of an account's key; raises `ValueError` for a seed that is none."""

    def __init__(self, seed: str) -> None:
        try:
            self._pair = nkeys.from_seed(bytearray(seed.encode()))
        except Exception as error:
            raise ValueError("not the seed of a NATS key") from error
        self._issuer: str = self._pair.public_key.decode()

    def sign(self, claims: dict[str, Any]) -> str:
        """The token with these claims, issued now."""
        claims = {**claims, "iss": self._issuer, "iat": int(time.time()), "jti": ""}
        claims["jti"] = base64.b32encode(hashlib.sha256(_json(claims)).digest()).decode().rstrip("=")
        signed = f"{_part(_HEADER)}.{_part(claims)}"
        signature: bytes = self._pair.sign(signed.encode())
        return f"{signed}.{_text(signature)}"


def claims_of(token: bytes) -> dict[str, Any]:
    """The claims, not verified; raises `ValueError` for what is no token."""
    try:
        part = token.split(b".")[1]
        claims = json.loads(base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4)))
    except (IndexError, ValueError) as error:
        raise ValueError("not a token") from error
    if not isinstance(claims, dict):
        raise ValueError("not a token")
    return claims


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


def _part(content: dict[str, Any]) -> str:
    return _text(_json(content))


def _text(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
