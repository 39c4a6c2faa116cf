"""Whose token the agent shows: that of the workload for which it works, else the node's own.

A worker says once for whom it works; all that its tasks call carries that token, so that a node can do
for a run only what the run may do itself.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from stellwerk_platform.grpc_client import Credentials

_token_file: ContextVar[Path | None] = ContextVar("token_file", default=None)


class AgentCredentials:
    """The token of the workload in whose context a call is made, or that of the node."""

    def __init__(self, node: Credentials) -> None:
        self._node = node

    async def token(self) -> str:
        """A living token; raises `PlatformError` if there is none."""
        path = _token_file.get()
        # It is replaced in one step when it is renewed; a file of this size is read faster than cached.
        return await self._node.token() if path is None else path.read_text()


def work_for(token_file: Path) -> None:
    """From here on, this task and those that it starts work for a workload."""
    _token_file.set(token_file)


@contextmanager
def as_node() -> Iterator[None]:
    """For what is the node's own business."""
    before = _token_file.set(None)
    try:
        yield
    finally:
        _token_file.reset(before)
