"""What benchmarks run against: started when the first benchmark asks, stopped when all are done."""

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from stellwerk_launcher.testing import Servers, StackProcess, running_servers

T = TypeVar("T")


class Resources:
    """Opens each resource at most once; leaving the `with` block closes them in reverse order."""

    def __init__(
        self,
        open_stack: Callable[[Path], AbstractContextManager[StackProcess]] = StackProcess,
        open_servers: Callable[[Path], AbstractContextManager[Servers]] = running_servers,
    ) -> None:
        self._open_stack = open_stack
        self._open_servers = open_servers
        self._stack: StackProcess | None = None
        self._servers: Servers | None = None
        self._exit = ExitStack()

    @property
    def stack(self) -> StackProcess:
        """A whole Stellwerk of its own, as `stellwerk up` starts it."""
        if self._stack is None:
            self._stack = self._exit.enter_context(self._open_stack(self.folder() / "stack"))
        return self._stack

    @property
    def servers(self) -> Servers:
        """The servers alone (NATS, MongoDB, OpenBao, versitygw), with users that may do everything."""
        if self._servers is None:
            self._servers = self._exit.enter_context(self._open_servers(self.folder() / "servers"))
        return self._servers

    def folder(self) -> Path:
        """A new folder that is removed at the end."""
        return Path(self._exit.enter_context(tempfile.TemporaryDirectory(prefix="stellwerk-bench-")))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.__exit__(kind, error, trace)
