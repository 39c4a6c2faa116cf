"""Who may score. The scorer behind trusts the gateway's own token, so this is the check that counts."""

import uuid
from collections.abc import Iterable, Mapping

from stellwerk_platform import auth, names
from stellwerk_platform.errors import InvalidArgument
from stellwerk_platform.grpc_client import Credentials
from stellwerk_platform.grpc_server import Verify

ENDPOINT_KEY = "stellwerk-endpoint"
REQUEST_ID = "x-request-id"
_PERMISSION = "endpoint.invoke"
_MAX_REQUEST_ID_LENGTH = 100


class Access:
    """Checks callers, and gives the token that the gateway shows in their place."""

    def __init__(self, verify: Verify, credentials: Credentials) -> None:
        self._verify = verify
        self._credentials = credentials

    async def admit(self, metadata: Iterable[tuple[str, object]], endpoint: str) -> str:
        """The `authorization` to show the scorer; raises `Unauthenticated` or `PermissionDenied`."""
        caller = await self._verify(auth.bearer(metadata))
        auth.authorise(caller, _PERMISSION, endpoint)
        return f"Bearer {await self._credentials.token()}"


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


def request_id(given: object) -> str:
    """The caller's request id, or a new one."""
    return str(given)[:_MAX_REQUEST_ID_LENGTH] if given else uuid.uuid4().hex
