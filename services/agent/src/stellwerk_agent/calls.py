"""RPCs that wait until the other side is there: an agent has nobody to give an error to."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc

from stellwerk_platform.errors import Internal, PlatformError, Unauthenticated, from_rpc

log = logging.getLogger(__name__)
T = TypeVar("T")
FIRST_DELAY_SECONDS = 0.2
LONGEST_DELAY_SECONDS = 5.0
_TIMEOUT_SECONDS = 30.0
_INTERNAL_TRIES = 5


async def call(
    method: Callable[..., Awaitable[T]],
    request: Any,
    judge: Callable[[PlatformError], None] = lambda failure: None,
) -> T:
    """The answer; raises `PlatformError` only when the same call can never succeed.

    `judge` sees each failure that may pass, and may raise.
    """
    delay, internal = FIRST_DELAY_SECONDS, 0
    while True:
        try:
            return await method(request, timeout=_TIMEOUT_SECONDS)
        except grpc.aio.AioRpcError as error:
            failure = from_rpc(error)
        except PlatformError as error:
            failure = error
        internal += isinstance(failure, Internal)
        if not may_pass(failure) or internal >= _INTERNAL_TRIES:
            raise failure
        judge(failure)
        log.warning("%s: %s; trying again", type(request).__name__, failure)
        await asyncio.sleep(delay)
        delay = min(delay * 2, LONGEST_DELAY_SECONDS)


def may_pass(error: PlatformError) -> bool:
    """Whether the error may go away by itself: a service that starts knows no keys yet.

    A token that was revoked stays so: its run is over.
    """
    if error.reason == "TOKEN_REVOKED":
        return False
    return error.retryable or isinstance(error, Unauthenticated | Internal)
