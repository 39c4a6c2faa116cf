"""The OpenID provider as a browser's login needs it; the protocol is Authlib's."""

import secrets
import time
from dataclasses import dataclass
from typing import Any

import grpc
import httpx2
from authlib.integrations.base_client.errors import OAuthError
from authlib.integrations.httpx_client import AsyncOAuth2Client

from stellwerk_platform.errors import FailedPrecondition, Unauthenticated, Unavailable, from_rpc
from stellwerk_protos.secrets.v1 import sessions_pb2, sessions_pb2_grpc

_OPTIONS_SECONDS = 60.0
_METADATA_SECONDS = 3_600.0
_TIMEOUT_SECONDS = 10.0
_LOOPBACK = ("http://127.0.0.1:", "http://localhost:", "http://[::1]:")


@dataclass(frozen=True)
class Begun:
    """A login on its way: where the browser goes, and what must come back."""

    url: str
    state: str
    nonce: str
    verifier: str


class Provider:
    """What `secrets` names as the provider, and its own configuration, both remembered for a while."""

    def __init__(self, sessions: "sessions_pb2_grpc.SessionServiceAsyncStub", client_secret: str) -> None:
        self._sessions = sessions
        self._client_secret = client_secret
        self._options = sessions_pb2.LoginOptions()
        self._options_until = 0.0
        self._metadata: dict[str, Any] = {}
        self._metadata_until = 0.0

    async def begin(self, redirect_uri: str) -> Begun:
        """Raises `FailedPrecondition` without a provider and `Unavailable` when it does not answer."""
        metadata = await self._read_metadata()
        verifier, nonce = secrets.token_urlsafe(48), secrets.token_urlsafe(24)
        async with self._client(redirect_uri) as client:
            url, state = client.create_authorization_url(
                metadata["authorization_endpoint"], code_verifier=verifier, nonce=nonce
            )
        return Begun(str(url), str(state), nonce, verifier)

    async def id_token(self, redirect_uri: str, code: str, verifier: str, issuer: str) -> str:
        """The ID token for a code; `issuer` is what the answer says of itself (RFC 9207), "" for nothing.

        Raises `Unauthenticated` for a code that is refused.
        """
        metadata = await self._read_metadata()
        wanted = bool(metadata.get("authorization_response_iss_parameter_supported"))
        if (issuer or wanted) and issuer != metadata["issuer"]:
            raise _refused("it came from another provider")
        try:
            async with self._client(redirect_uri) as client:
                answer = await client.fetch_token(
                    metadata["token_endpoint"], code=code, code_verifier=verifier
                )
        except OAuthError as error:
            raise _refused(str(error.error)) from error
        except (httpx2.HTTPError, ValueError) as error:
            raise self._unavailable() from error
        if not isinstance(answer.get("id_token"), str):
            raise _refused("there was no ID token")
        return str(answer["id_token"])

    def _client(self, redirect_uri: str) -> Any:
        return AsyncOAuth2Client(
            self._options.oidc_client_id,
            self._client_secret or None,
            token_endpoint_auth_method="client_secret_basic" if self._client_secret else "none",
            scope=" ".join(self._options.oidc_scopes),
            redirect_uri=redirect_uri,
            code_challenge_method="S256",
            timeout=_TIMEOUT_SECONDS,
            trust_env=not self._options.oidc_issuer.startswith(_LOOPBACK),
        )

    async def _read_metadata(self) -> dict[str, Any]:
        await self._read_options()
        if self._metadata and time.monotonic() < self._metadata_until:
            return self._metadata
        issuer = self._options.oidc_issuer
        try:
            trusts = not issuer.startswith(_LOOPBACK)
            async with httpx2.AsyncClient(timeout=_TIMEOUT_SECONDS, trust_env=trusts) as client:
                response = await client.get(f"{issuer.rstrip('/')}/.well-known/openid-configuration")
                response.raise_for_status()
                metadata: dict[str, Any] = response.json()
        except (httpx2.HTTPError, ValueError) as error:
            if self._metadata:
                return self._metadata
            raise self._unavailable() from error
        if metadata.get("issuer") != issuer:
            raise FailedPrecondition(
                "OIDC_MISCONFIGURED",
                f"The provider calls itself {str(metadata.get('issuer'))[:200]}, not {issuer}.",
                "Set STELLWERK_OIDC_ISSUER to the issuer exactly as the provider spells it.",
            )
        self._metadata, self._metadata_until = metadata, time.monotonic() + _METADATA_SECONDS
        return metadata

    async def _read_options(self) -> None:
        if time.monotonic() >= self._options_until:
            try:
                options = await self._sessions.GetLoginOptions(sessions_pb2.GetLoginOptionsRequest())
            except grpc.aio.AioRpcError as error:
                raise from_rpc(error) from error
            if options != self._options:
                self._metadata = {}
            self._options, self._options_until = options, time.monotonic() + _OPTIONS_SECONDS
        if not self._options.oidc_issuer or not self._options.oidc_client_id:
            raise FailedPrecondition(
                "OIDC_NOT_CONFIGURED",
                "This installation has no OpenID provider for browsers.",
                "Use an API key, or have STELLWERK_OIDC_ISSUER and STELLWERK_OIDC_CLIENT_ID set.",
            )

    def _unavailable(self) -> Unavailable:
        return Unavailable(
            "OIDC_UNAVAILABLE",
            f"The OpenID provider {self._options.oidc_issuer} does not answer.",
            "Try again later; API keys still work.",
        )


def _refused(why: str) -> Unauthenticated:
    return Unauthenticated(
        "LOGIN_REFUSED", f"The provider's answer is no login: {why[:200]}.", "Sign in again."
    )
