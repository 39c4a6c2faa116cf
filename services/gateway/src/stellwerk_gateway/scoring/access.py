"""Who may score, and the token that the gateway shows to scorers: good for one endpoint and nothing else,
because what a replica gets to see, its user's code may get to see too."""

import asyncio
import functools
import hashlib
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from stellwerk_platform import auth, names
from stellwerk_platform.access import Guard
from stellwerk_platform.errors import InvalidArgument
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


class Access:
    """Checks callers, and gives the token that the gateway shows in their place.

    `admit` is the one place that decides who may score: other kinds of keys are checked there.
    What it found is remembered for some seconds, so that a request costs one look into a table.
    """

    def __init__(self, guard: Guard, issue: Issue) -> None:
        self._guard = guard
        self._issue = issue
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
        metadata = (("authorization", authorization),) if authorization else ()
        caller = await self._guard.authenticate(metadata)
        auth.set_caller(caller)
        await self._guard.require(caller, permission, endpoint)
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
