"""Signing in at an OpenID provider from a terminal: the device flow (RFC 8628), by Authlib."""

import time
from collections.abc import Callable
from typing import Any

import httpx2
from authlib.integrations.base_client.errors import OAuthError
from authlib.integrations.httpx_client import OAuth2Client

from stellwerk.errors import StellwerkError
from stellwerk_protos.secrets.v1.sessions_pb2 import LoginOptions

GRANT = "urn:ietf:params:oauth:grant-type:device_code"
_INTERVAL_SECONDS = 5.0
_LONGEST_SECONDS = 60.0
_TIMEOUT_SECONDS = 10.0
_LOOPBACK = ("http://127.0.0.1:", "http://localhost:", "http://[::1]:")

# Shows the address to open, the code to compare or enter, and the address with the code in it ("" if none).
Show = Callable[[str, str, str], None]


def id_token(options: LoginOptions, show: Show) -> str:
    """The ID token of whoever signs in at the address that `show` is given; raises `StellwerkError`."""
    issuer = options.oidc_issuer
    client = OAuth2Client(
        options.oidc_device_client_id,
        scope=" ".join(options.oidc_scopes),
        token_endpoint_auth_method="none",
        timeout=_TIMEOUT_SECONDS,
        trust_env=not issuer.startswith(_LOOPBACK),
    )
    with client:
        try:
            metadata = _get(client, f"{issuer.rstrip('/')}/.well-known/openid-configuration")
            begun = _begin(client, metadata, options)
        except (httpx2.HTTPError, ValueError) as error:
            raise _unavailable(issuer) from error
        show(begun["verification_uri"], begun["user_code"], begun.get("verification_uri_complete", ""))
        return _poll(client, str(metadata["token_endpoint"]), begun, issuer)


def _get(client: Any, url: str) -> dict[str, Any]:
    response = client.request("GET", url, withhold_token=True)
    response.raise_for_status()
    document: dict[str, Any] = response.json()
    return document


def _begin(client: Any, metadata: dict[str, Any], options: LoginOptions) -> dict[str, Any]:
    endpoint = metadata.get("device_authorization_endpoint")
    if metadata.get("issuer") != options.oidc_issuer or not endpoint:
        raise StellwerkError(
            "DEVICE_FLOW_UNSUPPORTED",
            f"The OpenID provider {options.oidc_issuer} has no login for terminals.",
            "Sign in with an API key: stellwerk login --key.",
            code="FAILED_PRECONDITION",
        )
    asked = {"client_id": options.oidc_device_client_id, "scope": " ".join(options.oidc_scopes)}
    response = client.request("POST", endpoint, data=asked, withhold_token=True)
    if response.status_code == 400:
        raise _refused(str(response.json().get("error", "")))
    response.raise_for_status()
    begun: dict[str, Any] = response.json()
    return begun


def _poll(client: Any, endpoint: str, begun: dict[str, Any], issuer: str) -> str:
    """Asks as often as the provider allows; more seldom when it says so or does not answer."""
    interval = float(begun.get("interval", _INTERVAL_SECONDS))
    give_up = time.monotonic() + float(begun.get("expires_in", 600))
    while time.monotonic() < give_up:
        try:
            answer = client.fetch_token(endpoint, grant_type=GRANT, device_code=begun["device_code"])
        except OAuthError as error:
            if error.error == "slow_down":
                interval += 5
            elif error.error != "authorization_pending":
                raise _refused(str(error.error)) from error
        except (httpx2.HTTPError, ValueError):
            interval = min(interval * 2, _LONGEST_SECONDS)
        else:
            if isinstance(answer.get("id_token"), str):
                return str(answer["id_token"])
            raise _refused("it gave no ID token")
        time.sleep(interval)
    raise _refused("expired_token")


def _refused(why: str) -> StellwerkError:
    known = {"access_denied": "the login was refused", "expired_token": "nobody signed in in time"}
    return StellwerkError(
        "LOGIN_REFUSED",
        f"There is no login: {known.get(why, why)[:200]}.",
        "Try again: stellwerk login.",
        code="UNAUTHENTICATED",
    )


def _unavailable(issuer: str) -> StellwerkError:
    return StellwerkError(
        "OIDC_UNAVAILABLE",
        f"The OpenID provider {issuer} does not answer.",
        "Try again later, or sign in with an API key: stellwerk login --key.",
        code="UNAVAILABLE",
    )
