"""Who calls, and what they may do.

Tokens are EdDSA JSON Web Tokens signed by Vault transit in `secrets` and verified
here offline with the published keys. An API key is exchanged for a token at
`secrets` and remembered for a minute.
"""

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import grpc
import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from google.protobuf.message import Message

from stellwerk_platform import names
from stellwerk_platform.errors import PlatformError, Unauthenticated, Unavailable, from_rpc
from stellwerk_protos.secrets.v1 import tokens_pb2, tokens_pb2_grpc

if TYPE_CHECKING:
    from stellwerk_platform.revocations import Revocations

ISSUER = "stellwerk"
API_KEY_PREFIX = "swk_"
_CACHE_SIZE = 10_000
_TOKEN_CHARACTERS = 8_192
_API_KEY_SECONDS = 60
_KEY_REFRESH_SECONDS = 1.0
# So long a key that was retired, and what it signed, may go on here.
_KEY_LIFE_SECONDS = 300.0
_KEY_RETRY_SECONDS = 30.0


@dataclass(frozen=True)
class Caller:
    """An authenticated caller; `subject` of a workload is the run or replica that it serves.

    `key` is the API key that a person's token came from, `issue_time` in seconds since 1970,
    `secrets` the versions of secrets that a workload may read, `address` where the call came from.
    """

    subject: str
    role: str
    expire_time: float
    administrator: bool = False
    key: str = ""
    issue_time: float = 0.0
    secrets: tuple[str, ...] = ()
    address: str = ""


# Whether a caller may make a request that its role alone does not allow: said by the service that
# knows the resources. `runs` lets a run look after the runs below it.
Beyond = Callable[[Caller, Message], Awaitable[bool]]

_caller: ContextVar[Caller] = ContextVar("caller")
# Of a call that everybody may make.
_address: ContextVar[str] = ContextVar("address", default="")


def current_caller() -> Caller:
    """The caller of the RPC that this task handles."""
    return _caller.get()


def set_caller(caller: Caller) -> None:
    """Makes `caller` the one of this task."""
    _caller.set(caller)


def is_called() -> bool:
    """Whether this task handles an RPC whose caller is known."""
    return _caller.get(None) is not None


def current_address() -> str:
    """Where the RPC that this task handles came from; "" outside of one."""
    caller = _caller.get(None)
    return caller.address if caller is not None else _address.get()


def set_address(address: str) -> None:
    """Says where the RPC that this task handles came from, when its caller is nobody."""
    _address.set(address)


def current_actor(service: str) -> str:
    """The subject to record for a change: the caller's, or the service itself outside an RPC."""
    caller = _caller.get(None)
    return caller.subject if caller is not None else f"services/{service}"


class TokenSource(Protocol):
    """Where keys are published and API keys exchanged. Both raise `PlatformError`."""

    async def signing_keys(self) -> Mapping[str, bytes]:
        """Raw Ed25519 public keys by key id."""

    async def exchange(self, api_key: str) -> str:
        """The token that an API key stands for."""


class _Remote:
    """The source of every process but `secrets`, which is asked."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = tokens_pb2_grpc.TokenServiceStub(channel)

    async def signing_keys(self) -> Mapping[str, bytes]:
        try:
            answer = await self._stub.ListSigningKeys(tokens_pb2.ListSigningKeysRequest(), timeout=5)
        except grpc.aio.AioRpcError as error:
            raise _unreachable(error) from error
        return {key.key_id: key.public_key for key in answer.keys}

    async def exchange(self, api_key: str) -> str:
        try:
            answer = await self._stub.ExchangeApiKey(
                tokens_pb2.ExchangeApiKeyRequest(api_key=api_key), timeout=5
            )
        except grpc.aio.AioRpcError as error:
            raise _unreachable(error) from error
        return answer.token


@dataclass(frozen=True)
class _Verified:
    """A caller, until when on the monotonic clock it is remembered, and what was revoked by then."""

    caller: Caller
    until: float
    changes: int

    def is_living(self) -> bool:
        return self.caller.expire_time > time.time() and self.until > time.monotonic()


class TokenVerifier:
    """Verifies bearer tokens; one for each process, on a channel to `secrets`."""

    def __init__(
        self, source: grpc.aio.Channel | TokenSource, revocations: "Revocations | None" = None
    ) -> None:
        self._revocations = revocations
        self._source: TokenSource = _Remote(source) if isinstance(source, grpc.aio.Channel) else source
        self._keys: dict[str, Ed25519PublicKey] = {}
        self._keys_time = 0.0
        self._lock = asyncio.Lock()
        self._verified: OrderedDict[str, _Verified] = OrderedDict()

    async def verify(self, token: str) -> Caller:
        """The caller that a token or API key stands for; raises `Unauthenticated`."""
        is_key = token.startswith(API_KEY_PREFIX)
        cache_key = hashlib.sha256(token.encode()).hexdigest() if is_key else token
        known = self._verified.get(cache_key)
        if known is not None and known.is_living() and self._stands(known.caller, is_key, known.changes):
            return known.caller
        changes = 0
        if self._revocations is not None:
            await self._revocations.ready()
            changes = self._revocations.changes
        caller = await (self._exchange if is_key else self._decode)(token)
        self._stands(caller, is_key, changes)
        self._verified[cache_key] = _Verified(caller, time.monotonic() + _KEY_LIFE_SECONDS, changes)
        if len(self._verified) > _CACHE_SIZE:
            self._verified.popitem(last=False)
        return caller

    def _stands(self, caller: Caller, is_key: bool, changes: int) -> bool:
        """Whether nothing was revoked; raises `Unauthenticated` for a token that was.

        `secrets` has vouched for a key when it was exchanged, after `changes` was read: since then
        anything may have become of it, so it is exchanged anew.
        """
        if self._revocations is None:
            return True
        if is_key:
            return not self._revocations.changed_since(caller, changes)
        self._revocations.check(caller)
        return True

    async def _exchange(self, api_key: str) -> Caller:
        caller = await self._decode(await self._source.exchange(api_key))
        return replace(caller, expire_time=min(caller.expire_time, time.time() + _API_KEY_SECONDS))

    async def _decode(self, token: str) -> Caller:
        try:
            key_id = jwt.get_unverified_header(token).get("kid", "")
            key = await self._key(str(key_id))
            claims = jwt.decode(
                token,
                key,
                algorithms=["EdDSA"],
                audience=ISSUER,
                issuer=ISSUER,
                options={"require": ["exp", "sub", "aud", "iss"]},
            )
        except jwt.ExpiredSignatureError:
            raise Unauthenticated(
                "TOKEN_EXPIRED", "The token has expired.", "Get a new one, or use your API key."
            ) from None
        except jwt.PyJWTError:
            raise _invalid() from None
        return Caller(
            subject=str(claims["sub"]),
            role=str(claims.get("role", "")),
            expire_time=float(claims["exp"]),
            administrator=claims.get("adm") is True,
            key=str(claims.get("key", "")),
            issue_time=float(claims.get("iat", 0)),
            secrets=_secrets(str(claims["sub"]), claims.get("secrets")),
        )

    async def _key(self, key_id: str) -> Ed25519PublicKey:
        # A known key must not wait behind the question for an unknown one.
        if key_id not in self._keys or (self._is_older(_KEY_LIFE_SECONDS) and not self._lock.locked()):
            async with self._lock:
                # An unknown key may be a new one: ask, but not more often than once a second.
                known = key_id in self._keys
                if self._is_older(_KEY_LIFE_SECONDS if known else _KEY_REFRESH_SECONDS):
                    await self._refresh(known)
        if key_id not in self._keys:
            raise _invalid()
        return self._keys[key_id]

    def _is_older(self, seconds: float) -> bool:
        return time.monotonic() - self._keys_time > seconds

    async def _refresh(self, known: bool) -> None:
        """Asks for the keys; while `secrets` is away, those that are known stay."""
        try:
            keys = await self._source.signing_keys()
        except Unavailable:
            if not known:
                raise
            self._keys_time = time.monotonic() - _KEY_LIFE_SECONDS + _KEY_RETRY_SECONDS
            return
        self._keys = {key: Ed25519PublicKey.from_public_bytes(raw) for key, raw in keys.items()}
        self._keys_time = time.monotonic()


def bearer(metadata: object) -> str:
    """The bearer token in gRPC metadata; raises `Unauthenticated` without one."""
    for key, value in metadata or ():  # type: ignore[attr-defined]  # grpc's metadata type is a tuple of pairs
        if key == "authorization" and isinstance(value, str) and value[:7].lower() == "bearer ":
            token = value[7:].strip()
            if len(token) > _TOKEN_CHARACTERS:
                raise _invalid()
            return token
    raise Unauthenticated(
        "KEY_MISSING",
        "The request carries no key.",
        "Send the header 'authorization: Bearer KEY'; `stellwerk status` names the owner's key file.",
    )


def _secrets(subject: str, claimed: object) -> tuple[str, ...]:
    """Resource names from the claim, which has `<secret>:<version>` each so that the token stays short."""
    if not isinstance(claimed, list):
        return ()
    parent = f"workspaces/{names.workspace_of(subject)}"
    pairs = (str(item).rpartition(":") for item in claimed)
    return tuple(f"{parent}/secrets/{secret}/versions/{version}" for secret, _, version in pairs)


def _invalid() -> PlatformError:
    return Unauthenticated(
        "KEY_INVALID", "The key or token is not valid.", "Check the key, or get a new one."
    )


def _unreachable(error: grpc.aio.AioRpcError) -> PlatformError:
    if error.code() == grpc.StatusCode.UNAUTHENTICATED:
        return from_rpc(error)
    return Unavailable(
        "SECRETS_UNAVAILABLE",
        "The service that checks keys does not answer.",
        "Try again; see `stellwerk status`.",
    )


class CallerCredentials:
    """The token that this process shows to others: from AppRole credentials, renewed at half its life."""

    def __init__(self, channel: grpc.aio.Channel, role_id: str, secret_id: str) -> None:
        self._stub = tokens_pb2_grpc.TokenServiceStub(channel)
        self._request = tokens_pb2.LoginServiceRequest(role_id=role_id, secret_id=secret_id)
        self._token = ""
        self._renew_time = 0.0
        self._expire_time = 0.0
        self._lock = asyncio.Lock()

    async def token(self) -> str:
        """A living token; raises `PlatformError` if there is none and `secrets` gives none."""
        if time.time() < self._renew_time:
            return self._token
        async with self._lock:
            if time.time() < self._renew_time:
                return self._token
            try:
                answer = await self._stub.LoginService(self._request, timeout=10, wait_for_ready=True)
            except grpc.aio.AioRpcError as error:
                if time.time() < self._expire_time:
                    return self._token
                raise _unreachable(error) from error
            now, self._token = time.time(), answer.token
            self._expire_time = float(answer.expire_time.seconds)
            self._renew_time = now + (self._expire_time - now) / 2
            return self._token


class StaticCredentials:
    """A token or API key that does not change."""

    def __init__(self, token: str) -> None:
        self._token = token

    async def token(self) -> str:
        """The token."""
        return self._token
