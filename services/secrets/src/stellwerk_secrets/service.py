"""The gRPC face of `secrets`."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from stellwerk_platform.auth import current_caller
from stellwerk_platform.errors import PermissionDenied
from stellwerk_protos.secrets.v1 import tokens_pb2, tokens_pb2_grpc
from stellwerk_secrets import domain
from stellwerk_secrets.admission import Admission
from stellwerk_secrets.issuer import Issuer, SigningKeys
from stellwerk_secrets.logins import Logins
from stellwerk_secrets.named.service import SecretService
from stellwerk_secrets.revocations.store import Revocations

log = logging.getLogger(__name__)


class Exchange:
    """API keys for tokens; also the source of this service's own `TokenVerifier`."""

    def __init__(self, admission: Admission, issuer: Issuer, keys: SigningKeys) -> None:
        self._admission = admission
        self._issuer = issuer
        self._keys = keys

    async def signing_keys(self) -> Mapping[str, bytes]:
        """Raw public keys by key id."""
        return await self._keys.published()

    async def rotate(self) -> tuple[str, bytes]:
        """Has a new key sign from some seconds on; its id and public key."""
        return await self._keys.rotate()

    async def exchange(self, api_key: str) -> str:
        """The token of the key's identity, as text."""
        return (await self.token(api_key)).token

    async def token(self, api_key: str) -> tokens_pb2.Token:
        """The token of the key's identity; raises `Unauthenticated` with reason KEY_INVALID."""
        identity, life_seconds = await self._admission.admit(domain.digest_of(api_key))
        return await self._issuer.shared(identity, life_seconds)


class TokenService(tokens_pb2_grpc.TokenServiceServicer):
    """tokens.proto."""

    def __init__(
        self,
        exchange: Exchange,
        logins: Logins,
        issuer: Issuer,
        revocations: Revocations,
        secrets: SecretService,
    ) -> None:
        self._exchange = exchange
        self._logins = logins
        self._issuer = issuer
        self._revocations = revocations
        self._secrets = secrets

    async def ExchangeApiKey(
        self, request: tokens_pb2.ExchangeApiKeyRequest, context: Any
    ) -> tokens_pb2.Token:
        return await self._exchange.token(request.api_key)

    async def LoginService(self, request: tokens_pb2.LoginServiceRequest, context: Any) -> tokens_pb2.Token:
        identity = await self._logins.check(request.role_id, request.secret_id)
        return await self._issuer.shared(identity, domain.LOGIN_TOKEN_SECONDS)

    async def IssueWorkloadToken(
        self, request: tokens_pb2.IssueWorkloadTokenRequest, context: Any
    ) -> tokens_pb2.Token:
        # A node has the internal permission too, but must not become a run that it was not given.
        caller = current_caller()
        if caller.role != "Service":
            raise PermissionDenied(
                "PERMISSION_DENIED",
                f"{caller.subject} ({caller.role}) may not issue tokens.",
                "Only services do; a node gets the token with its work.",
            )
        identity = domain.identity_of_workload(request.owner)
        if request.secrets:
            granted = await self._secrets.granted(request.owner, list(request.secrets))
            identity = replace(identity, secrets=tuple(granted))
        return await self._issuer.issue(identity, domain.WORKLOAD_TOKEN_SECONDS)

    async def ListRevocations(
        self, request: tokens_pb2.ListRevocationsRequest, context: Any
    ) -> tokens_pb2.ListRevocationsResponse:
        return tokens_pb2.ListRevocationsResponse(revocations=await self._revocations.living())

    async def ListSigningKeys(
        self, request: tokens_pb2.ListSigningKeysRequest, context: Any
    ) -> tokens_pb2.ListSigningKeysResponse:
        keys = await self._exchange.signing_keys()
        return tokens_pb2.ListSigningKeysResponse(
            keys=[tokens_pb2.SigningKey(key_id=key, public_key=raw) for key, raw in sorted(keys.items())]
        )

    async def RotateSigningKey(
        self, request: tokens_pb2.RotateSigningKeyRequest, context: Any
    ) -> tokens_pb2.SigningKey:
        key, raw = await self._exchange.rotate()
        log.warning("%s rotated the signing key: it is %s now", current_caller().subject, key)
        return tokens_pb2.SigningKey(key_id=key, public_key=raw)

    async def GetCaller(self, request: tokens_pb2.GetCallerRequest, context: Any) -> tokens_pb2.Caller:
        caller = current_caller()
        return tokens_pb2.Caller(
            subject=caller.subject, role=caller.role, administrator=caller.administrator, key=caller.key
        )
