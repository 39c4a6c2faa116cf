"""Who may score, and the token that the gateway shows to scorers: good for one endpoint and nothing else,
because what a replica gets to see, its user's code may get to see too."""

import asyncio
import functools
import hashlib
import hmac
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from stellwerk_platform import auth, names, roles
from stellwerk_platform.access import Guard
from stellwerk_platform.errors import InvalidArgument, Unauthenticated
from stellwerk_protos.inference.v1 import endpoints_pb2 as pb
from stellwerk_protos.secrets.v1 import tokens_pb2

if TYPE_CHECKING:
    from stellwerk_protos.secrets.v1.tokens_pb2_grpc import TokenServiceAsyncStub

ENDPOINT_KEY = "stellwerk-endpoint"
REQUEST_ID = "x-request-id"
_INVOKE = "endpoint.invoke"
MAX_REQUEST_ID_LENGTH = 100
# A key that is withdrawn opens an endpoint so much longer than `secrets` says.
_REMEMBERED_SECONDS = 5.0
_MAX_TOKENS = 10_000

# A key of an endpoint begins so; those of people do not.
_ENDPOINT_KEY = "bearer swe_"
_NO_KEY_CURE = (
    "Send the header 'authorization: Bearer KEY' with one of the endpoint's two keys "
    "(`stellwerk endpoint keys regenerate NAME --key secondary` makes one anew), or with one of the platform."
)
# Compared with where there is no key, so that an answer takes as long.
_NO_DIGESTS = (bytes(32), bytes(32))
# A key can be known a moment before its digest is here; a request waits that long.
_PATIENCE_SECONDS = 0.5

Issue = Callable[[str], Awaitable[str]]


class RequestIdTooLong(InvalidArgument):
    """The Azure contract fixes limit and status."""

    http_status = 431


class InvokeTokens:
    """A token for each endpoint, asked of `secrets` and renewed at half its life."""

    def __init__(self, stub: "TokenServiceAsyncStub") -> None:
        self._stub = stub
        self._tokens: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._lock = asyncio.Lock()

    async def issue(self, endpoint: str) -> str:
        """The token to show the scorers of an endpoint."""
        token, renew_time = self._tokens.get(endpoint, ("", 0.0))
        if time.time() < renew_time:
            return token
        async with self._lock:
            token, renew_time = self._tokens.get(endpoint, ("", 0.0))
            if time.time() < renew_time:
                return token
            answer = await self._stub.IssueWorkloadToken(
                tokens_pb2.IssueWorkloadTokenRequest(owner=endpoint), timeout=10
            )
            now = time.time()
            self._tokens[endpoint] = (answer.token, now + (answer.expire_time.seconds - now) / 2)
            if len(self._tokens) > _MAX_TOKENS:
                self._tokens.popitem(last=False)
            return answer.token


@dataclass(frozen=True)
class Lock:
    """What opens an endpoint: digests of its keys, and whether keys or tokens are taken at all."""

    digests: tuple[bytes, ...] = ()
    auth_mode: pb.AuthMode.ValueType = pb.AUTH_MODE_KEY_AND_TOKEN

    def fits(self, digest: bytes) -> bool:
        """Whether a key opens it; always the same work."""
        digests = (*self.digests, *_NO_DIGESTS)[: len(_NO_DIGESTS)]
        return sum(hmac.compare_digest(digest, known) for known in digests) > 0


class Locks(Protocol):
    """Where locks are known: the table of routes."""

    def lock(self, endpoint: str) -> Lock:
        """That of an endpoint; one that no key opens for an endpoint that is not known."""

    def check_loaded(self) -> None:
        """Raises `Unavailable` while nothing is known."""

    async def next_change(self) -> None:
        """Returns when the table has changed."""


class Access:
    """Checks callers, and gives the token that the gateway shows in their place.

    `admit` is the one place that decides who may score. A key of an endpoint is compared with the
    digests that came with the routes: nobody is asked.
    What it found is remembered for some seconds, so that a request costs one look into a table.
    """

    def __init__(self, guard: Guard, issue: Issue, locks: Locks) -> None:
        self._guard = guard
        self._issue = issue
        self._locks = locks
        # By digest of the authorization and endpoint: what to show its scorers, and until when that holds.
        self._admitted: OrderedDict[tuple[bytes, str], tuple[str, float]] = OrderedDict()
        self._changes = 0
        guard.listen(self.forget)

    def forget(self) -> None:
        """Looks at every caller anew: what somebody may do has changed."""
        self._changes += 1
        self._admitted.clear()

    def remembered(self, authorization: str, endpoint: str) -> str | None:
        """What `admit` returned a moment ago."""
        onward, until = self._admitted.get((_digest(authorization), endpoint), (None, 0.0))
        return onward if time.monotonic() < until else None

    async def admit(self, authorization: str, endpoint: str) -> str:
        """The authorization to show the scorers of an endpoint.

        Raises `Unauthenticated` or `PermissionDenied`; `Unavailable` if it cannot be checked.
        """
        changes = self._changes
        caller = await self.check(authorization, endpoint)
        onward = f"Bearer {await self._issue(endpoint)}"
        if changes != self._changes:
            return onward  # something has changed on the way: not remembered
        seconds = min(_REMEMBERED_SECONDS, caller.expire_time - time.time())
        self._admitted[_digest(authorization), endpoint] = onward, time.monotonic() + seconds
        if len(self._admitted) > _MAX_TOKENS:
            self._admitted.popitem(last=False)
        return onward

    async def check(self, authorization: str, endpoint: str, permission: str = _INVOKE) -> auth.Caller:
        """The caller, who has the permission; raises as `admit`."""
        invokes = permission == _INVOKE
        if invokes and authorization[: len(_ENDPOINT_KEY)].lower() == _ENDPOINT_KEY:
            return await self._check_key(authorization.partition(" ")[2], endpoint)
        if invokes and not authorization.lower().startswith("bearer "):
            raise Unauthenticated("KEY_MISSING", "The request carries no key.", _NO_KEY_CURE)
        metadata = (("authorization", authorization),) if authorization else ()
        caller = await self._guard.authenticate(metadata)
        auth.set_caller(caller)
        await self._guard.require(caller, permission, endpoint)
        if invokes and self._locks.lock(endpoint).auth_mode == pb.AUTH_MODE_KEY:
            raise Unauthenticated(
                "TOKEN_NOT_ACCEPTED",
                "The endpoint takes its own keys only.",
                "Show one of its two keys: `stellwerk endpoint keys regenerate` makes a new one.",
            )
        return caller

    async def _check_key(self, key: str, endpoint: str) -> auth.Caller:
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                while not self._locks.lock(endpoint).fits(digest):
                    await self._locks.next_change()
        except TimeoutError:
            self._locks.check_loaded()
            raise Unauthenticated(
                "KEY_INVALID",
                "The key does not open this endpoint.",
                "Show one of its two keys: `stellwerk endpoint keys show-hint` tells which there are.",
            ) from None
        caller = auth.Caller(f"{endpoint}/key", roles.INVOKER, float("inf"))
        auth.set_caller(caller)
        if self._locks.lock(endpoint).auth_mode == pb.AUTH_MODE_TOKEN:
            raise Unauthenticated(
                "KEY_NOT_ACCEPTED",
                "The endpoint takes tokens and API keys of the platform only.",
                "Show one whose role may invoke it, or `stellwerk endpoint auth NAME both`.",
            )
        return caller


def _digest(authorization: str) -> bytes:
    """So that no key stays in memory."""
    return hashlib.sha256(authorization.encode("utf-8", "surrogateescape")).digest()


@functools.lru_cache(maxsize=_MAX_TOKENS)
def endpoint_name(workspace: str, endpoint: str) -> str:
    """The resource name; raises `InvalidArgument` for ids that no endpoint can have."""
    names.check_id("workspaces", workspace)
    names.check_id("endpoints", endpoint)
    return f"workspaces/{workspace}/endpoints/{endpoint}"


def endpoint_of(metadata: Mapping[str, object]) -> str:
    """The endpoint that gRPC metadata names; raises `InvalidArgument`."""
    value = metadata.get(ENDPOINT_KEY, "")
    workspace, _, endpoint = str(value).partition("/")
    if not endpoint:
        raise InvalidArgument(
            "ENDPOINT_MISSING",
            f"The metadata does not say which endpoint is meant: {ENDPOINT_KEY} is {value!r}.",
            f"Send the metadata `{ENDPOINT_KEY}: WORKSPACE/ENDPOINT`.",
        )
    return endpoint_name(workspace, endpoint)


def told_endpoint(metadata: Mapping[str, object]) -> str:
    """The endpoint that metadata names, whether or not there can be one."""
    workspace, _, endpoint = str(metadata.get(ENDPOINT_KEY, "")).partition("/")
    return f"workspaces/{workspace}/endpoints/{endpoint}" if endpoint else ""


def new_request_id() -> str:
    """An id for a request that has none: 32 hexadecimal digits."""
    return f"{random.getrandbits(128):032x}"


def check_request_id(given: str) -> None:
    """Raises `RequestIdTooLong`."""
    if len(given) > MAX_REQUEST_ID_LENGTH:
        raise RequestIdTooLong(
            "REQUEST_ID_TOO_LONG",
            f"The request id is longer than {MAX_REQUEST_ID_LENGTH} characters.",
            "Send a shorter one, or none: then one is made up.",
        )
