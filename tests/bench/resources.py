"""What benchmarks run against: started when the first benchmark asks, stopped when all are done."""

import importlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Any, Self

Opener = Callable[[], AbstractContextManager[Any]]


def _from_launcher(name: str) -> Opener:
    """Opens a class of `stellwerk_launcher.testing`; imported late: few benchmarks need it."""

    def opener() -> AbstractContextManager[Any]:
        opened: AbstractContextManager[Any] = getattr(
            importlib.import_module("stellwerk_launcher.testing"), name
        )()
        return opened

    return opener


OPENERS: Mapping[str, Opener] = {
    "stack": _from_launcher("StackProcess"),
    "servers": _from_launcher("ServersProcess"),
}


class Resources:
    """Opens each resource at most once; leaving the `with` block closes them in reverse order."""

    def __init__(self, openers: Mapping[str, Opener] = OPENERS) -> None:
        self._openers = openers
        self._opened: dict[str, Any] = {}
        self._exit = ExitStack()

    @property
    def stack(self) -> Any:
        """A whole Stellwerk, as `stellwerk up` starts it."""
        return self._open("stack")

    @property
    def servers(self) -> Any:
        """The servers alone: NATS, MongoDB, OpenBao, versitygw."""
        return self._open("servers")

    def _open(self, name: str) -> Any:
        if name not in self._opened:
            self._opened[name] = self._exit.enter_context(self._openers[name]())
        return self._opened[name]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.__exit__(kind, error, trace)
