"""A real OpenID provider in a child process, and somebody who fills in its forms."""

import contextlib
import html
import json
import re
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

from stellwerk_launcher import ports
from stellwerk_launcher.tied import tied_to_parent
from tests.oidc.installation import HERE

CLIENT, SECRET, DEVICE_CLIENT = "stellwerk", "a secret of tests only", "stellwerk-cli"
ACCOUNTS: Mapping[str, Mapping[str, object]] = {
    "ada": {"email": "ada@example.org", "email_verified": True, "name": "Ada Lovelace"},
    "bob": {"email": "bob@example.org", "email_verified": True, "name": "Bob"},
    "new": {"email": "New.Person@example.org", "email_verified": True, "name": "New Person"},
    "stranger": {"email": "stranger@example.net", "email_verified": True, "name": "Stranger"},
    "unproven": {"email": "owner@example.org", "email_verified": False, "name": "Not Ada"},
}
_FORM = re.compile(r"<form[^>]*action=\"([^\"]*)\"[^>]*>(.*?)</form>", re.DOTALL)
_FIELD = re.compile(r"<input[^>]*name=\"([^\"]*)\"[^>]*>")
_VALUE = re.compile(r"value=\"([^\"]*)\"")


def new_key() -> dict[str, Any]:
    """A private RSA key as the provider takes it."""
    made = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    key: dict[str, Any] = jwt.algorithms.RSAAlgorithm.to_jwk(made, as_dict=True)
    return {**key, "kid": uuid.uuid4().hex, "use": "sig", "alg": "RS256"}


@dataclass
class OpenIdProvider:
    """The provider; `redirect_uris` are those of its browser client."""

    node: Path
    modules: Path
    redirect_uris: list[str]
    port: int = field(default_factory=lambda: ports.choose(["oidc"], {})["oidc"])
    keys: list[dict[str, Any]] = field(default_factory=lambda: [new_key()])

    @property
    def issuer(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def settings(self) -> dict[str, str]:
        """What `secrets` is told about it."""
        return {
            "oidc_issuer": self.issuer,
            "oidc_client_id": CLIENT,
            "oidc_device_client_id": DEVICE_CLIENT,
        }

    def forged(self, **claims: object) -> str:
        """A token with the provider's own signature and claims that it would not make."""
        now = int(time.time())
        usual = {"iss": self.issuer, "aud": DEVICE_CLIENT, "sub": "ada", "iat": now, "exp": now + 60}
        key = jwt.PyJWK(self.keys[0])
        told = {
            name: value for name, value in {**usual, **ACCOUNTS["ada"], **claims}.items() if value is not None
        }
        return jwt.encode(told, key, "RS256", {"kid": self.keys[0]["kid"]})

    @contextmanager
    def run(self) -> Iterator["OpenIdProvider"]:
        """Runs until the block ends; may be run again, with other keys for example."""
        browser = {
            "client_id": CLIENT,
            "client_secret": SECRET,
            "redirect_uris": self.redirect_uris,
            "grant_types": ["authorization_code"],
        }
        device = {
            "client_id": DEVICE_CLIENT,
            "token_endpoint_auth_method": "none",
            "redirect_uris": [],
            "response_types": [],
            "grant_types": ["urn:ietf:params:oauth:grant-type:device_code"],
            "application_type": "native",
        }
        settings = {
            "modules": str(self.modules),
            "port": self.port,
            "keys": self.keys,
            "clients": [browser, device],
            "accounts": ACCOUNTS,
        }
        process = subprocess.Popen(
            tied_to_parent([str(self.node), str(HERE / "provider.mjs"), json.dumps(settings)]),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", "the OpenID provider did not start"
            yield self
        finally:
            process.terminate()
            process.wait(30)
            with contextlib.suppress(AttributeError):
                process.stdout.close()  # type: ignore[union-attr]


async def device_id_token(provider: OpenIdProvider, account: str) -> str:
    """The ID token that a device flow of this account ends with (RFC 8628)."""
    async with httpx.AsyncClient(base_url=provider.issuer, trust_env=False) as client:
        asked = await client.post(
            "/device/auth", data={"client_id": DEVICE_CLIENT, "scope": "openid email profile"}
        )
        begun = asked.json()
        async with httpx.AsyncClient(trust_env=False) as browser:
            await sign_in(browser, begun["verification_uri_complete"], account)
        answer = await client.post(
            "/token",
            data={
                "client_id": DEVICE_CLIENT,
                "grant_type": "urn:ietf:params:oauth:grant-type:device_code",
                "device_code": begun["device_code"],
            },
        )
        return str(answer.json()["id_token"])


async def sign_in(
    browser: httpx.AsyncClient, url: str, account: str, *, until: str = "/login/callback"
) -> httpx.Response:
    """Opens a page and fills in what comes: sign-in and consent.

    Returns the first answer without a form, or the redirect to a URL that has `until` in it.
    """
    response = await browser.get(url)
    while True:
        if response.is_redirect:
            target = urljoin(str(response.url), response.headers["location"])
            if until and until in target:
                return response
            response = await browser.get(target)
            continue
        form = _FORM.search(response.text)
        if form is None:
            return response
        fields = {}
        for found in _FIELD.finditer(form[2]):
            value = _VALUE.search(found[0])
            fields[found[1]] = html.unescape(value[1]) if value else account
        response = await browser.post(urljoin(str(response.url), html.unescape(form[1])), data=fields)
