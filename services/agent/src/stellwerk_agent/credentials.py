"""Whose token the agent shows: that of the workload for which it works, else the node's own.

A worker says once for whom it works; all that its tasks call carries that token, so that a node can do
for a run only what the run may do itself.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from stellwerk_platform.grpc_client import Credentials

_Read = Callable[[], str]
_read: ContextVar[_Read | None] = ContextVar("read_token", default=None)


class AgentCredentials:
    """The token of the workload in whose context a call is made, or that of the node."""

    def __init__(self, node: Credentials) -> None:
        self._node = node

    async def token(self) -> str:
        """A living token; raises `PlatformError` if there is none."""
        read = _read.get()
        return await self._node.token() if read is None else read()


def work_for(read: _Read) -> None:
    """From here on, this task and those that it starts show the token that `read` returns."""
    _read.set(read)


@contextmanager
def showing(token: str) -> Iterator[None]:
    """Shows this token, which is not in the file yet."""
    before = _read.set(lambda: token)
    try:
        yield
    finally:
        _read.reset(before)
