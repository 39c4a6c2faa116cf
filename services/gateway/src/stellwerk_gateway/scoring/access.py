"""Who may score, and the token that the gateway shows to scorers: good for one endpoint and nothing else,
because what a replica gets to see, its user's code may get to see too."""

import asyncio
import time
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from stellwerk_platform import auth, names
from stellwerk_platform.access import Guard
from stellwerk_platform.errors import InvalidArgument
from stellwerk_protos.secrets.v1 import tokens_pb2

if TYPE_CHECKING:
    from stellwerk_protos.secrets.v1.tokens_pb2_grpc import TokenServiceAsyncStub

ENDPOINT_KEY = "stellwerk-endpoint"
REQUEST_ID = "x-request-id"
_PERMISSION = "endpoint.invoke"
_MAX_REQUEST_ID_LENGTH = 100
_MAX_TOKENS = 10_000

Issue = Callable[[str], Awaitable[str]]


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
    """Checks callers, and gives the token that the gateway shows in their place."""

    def __init__(self, guard: Guard, issue: Issue) -> None:
        self._guard = guard
        self._issue = issue

    async def admit(self, metadata: Iterable[tuple[str, object]], endpoint: str) -> None:
        """Raises `Unauthenticated` or `PermissionDenied`."""
        caller = await self._guard.authenticate(metadata)
        auth.set_caller(caller)
        await self._guard.require(caller, _PERMISSION, endpoint)

    async def authorization(self, endpoint: str) -> str:
        """What to show the scorers of an endpoint that exists."""
        return f"Bearer {await self._issue(endpoint)}"


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


def request_id(given: object) -> str:
    """The caller's request id, or a new one."""
    return str(given)[:_MAX_REQUEST_ID_LENGTH] if given else uuid.uuid4().hex
