"""Header names as Azure's server spells them (`Content-Type`), found in any spelling."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any


class Headers(dict):  # type: ignore[type-arg]  # a dict, for scripts that look for one
    """A dict whose keys are header names; several values of a name are joined by commas."""

    def __init__(self, pairs: Iterable[Iterable[str]] = ()) -> None:
        super().__init__()
        for name, value in pairs:
            self[name] = f"{self[name]},{value}" if name in self else value

    def __setitem__(self, name: str, value: str) -> None:
        super().__setitem__(name.title(), value)

    def __getitem__(self, name: str) -> Any:
        return super().__getitem__(name.title())

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name.title())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and super().__contains__(name.title())

    def get(self, name: str, default: Any = None, type: Any = None) -> Any:
        """The value, converted by `type`; the default if there is none or it does not convert."""
        value = super().get(name.title())
        try:
            return default if value is None else value if type is None else type(value)
        except ValueError:
            return default

    def getlist(self, name: str) -> list[str]:
        """All values of a name."""
        return [value.strip() for value in self[name].split(",")] if name in self else []


class RequestHeaders(Headers):
    """Those of a request, which Flask gives pair by pair."""

    def __iter__(self) -> Iterator[tuple[str, str]]:  # as Flask does
        return iter(self.items())
