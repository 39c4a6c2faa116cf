"""Header names as Azure's server spells them (`Content-Type`), found in any spelling."""

from __future__ import annotations

from collections.abc import Iterable
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

    def get(self, name: str, default: Any = None) -> Any:
        """The value, or the default."""
        return super().get(name.title(), default)

    def getlist(self, name: str) -> list[str]:
        """All values of a name."""
        return [value.strip() for value in self[name].split(",")] if name in self else []
