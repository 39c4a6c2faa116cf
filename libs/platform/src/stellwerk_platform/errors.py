"""The one error of the platform and its single translation to and from the wire.

A service raises `PlatformError` subclasses; one interceptor turns them into
`google.rpc.Status` with an `ErrorInfo` (google.aip.dev/193), the gateway uses the
same table for HTTP, and a client gets the same error back.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

DOMAIN = "stellwerk"
_CURE = "cure"


class PlatformError(Exception):
    """An error with a stable reason code, a sentence for a person and a cure.

    `reason` is UPPER_SNAKE_CASE and listed in docs/errors.md; `retryable` says
    whether the same call may succeed later without any change.
    """

    grpc_code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(
        self, reason: str, message: str, cure: str = "", metadata: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.cure = cure
        self.metadata = dict(metadata or {})


class InvalidArgument(PlatformError):
    """The request can never succeed as it is."""

    grpc_code = grpc.StatusCode.INVALID_ARGUMENT
    http_status = 400


class Unauthenticated(PlatformError):
    """The caller did not prove who it is."""

    grpc_code = grpc.StatusCode.UNAUTHENTICATED
    http_status = 401


class PermissionDenied(PlatformError):
    """The caller may not do this."""

    grpc_code = grpc.StatusCode.PERMISSION_DENIED
    http_status = 403


class NotFound(PlatformError):
    """What the request names does not exist."""

    grpc_code = grpc.StatusCode.NOT_FOUND
    http_status = 404


class AlreadyExists(PlatformError):
    """What the request would create exists."""

    grpc_code = grpc.StatusCode.ALREADY_EXISTS
    http_status = 409


class Aborted(PlatformError):
    """Somebody else changed the resource; read it again."""

    grpc_code = grpc.StatusCode.ABORTED
    http_status = 409


class FailedPrecondition(PlatformError):
    """The resource is not in a state that allows this."""

    grpc_code = grpc.StatusCode.FAILED_PRECONDITION
    http_status = 412


class ResourceExhausted(PlatformError):
    """A limit is reached."""

    grpc_code = grpc.StatusCode.RESOURCE_EXHAUSTED
    http_status = 429


class Unimplemented(PlatformError):
    """There is no such method."""

    grpc_code = grpc.StatusCode.UNIMPLEMENTED
    http_status = 501


class Unavailable(PlatformError):
    """A part that is needed does not answer now."""

    grpc_code = grpc.StatusCode.UNAVAILABLE
    http_status = 503
    retryable = True


class DeadlineExceeded(PlatformError):
    """The answer did not come in time."""

    grpc_code = grpc.StatusCode.DEADLINE_EXCEEDED
    http_status = 504
    retryable = True


class Internal(PlatformError):
    """A defect. The caller learns nothing but the trace id."""


BY_CODE: dict[grpc.StatusCode, type[PlatformError]] = {
    error.grpc_code: error for error in PlatformError.__subclasses__()
}


_TRANSLATIONS: dict[type[Exception], Callable[[Exception], PlatformError]] = {}


def translate(kind: type[Exception], into: Callable[[Exception], PlatformError]) -> None:
    """Says what a driver's exception means; the module that knows the driver says it, once."""
    _TRANSLATIONS[kind] = into


def as_platform_error(error: Exception) -> PlatformError | None:
    """What an exception means to a caller, None when it can only be a defect."""
    if isinstance(error, PlatformError):
        return error
    if isinstance(error, grpc.aio.AioRpcError):
        return from_rpc(error)
    for kind, into in _TRANSLATIONS.items():
        if isinstance(error, kind):
            return into(error)
    return None


def to_status(error: PlatformError) -> status_pb2.Status:
    """`google.rpc.Status` with one `ErrorInfo` whose metadata carries the cure."""
    metadata = {**error.metadata, _CURE: error.cure} if error.cure else error.metadata
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)
    status = status_pb2.Status(code=error.grpc_code.value[0], message=error.message)
    status.details.add().Pack(info)
    return status


def from_rpc(error: grpc.aio.AioRpcError) -> PlatformError:
    """The error that the other side raised, or its code's class with reason `UPSTREAM_<CODE>`."""
    kind = BY_CODE.get(error.code(), Internal)
    message = error.details() or error.code().name
    status = rpc_status.from_call(error)
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.domain == DOMAIN:
            metadata = dict(info.metadata)
            return kind(info.reason, message, metadata.pop(_CURE, ""), metadata)
    return kind(f"UPSTREAM_{error.code().name}", message)
