"""The response that a script may return to choose status, headers and body itself."""

from __future__ import annotations

import json
from typing import Any


class ResponseHeaders:
    """Headers in their order; a name may come several times."""

    def __init__(self) -> None:
        self._pairs: list[tuple[str, str]] = []

    def add(self, name: str, value: object) -> None:
        """Adds one more value."""
        self._pairs.append((name, str(value)))

    add_header = add

    def remove(self, name: str) -> None:
        """Removes all values of a name."""
        self._pairs = [pair for pair in self._pairs if pair[0].lower() != name.lower()]

    def items(self) -> list[tuple[str, str]]:
        """All pairs."""
        return list(self._pairs)

    def get(self, name: str, default: Any = None) -> Any:
        """The first value."""
        return next((value for key, value in self._pairs if key.lower() == name.lower()), default)

    def __getitem__(self, name: str) -> str:
        if name not in self:
            raise KeyError(name)
        return str(self.get(name))

    def __setitem__(self, name: str, value: object) -> None:
        self.remove(name)
        self.add(name, value)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get(name) is not None


class AMLResponse:
    """Body, status and headers; `json_str` sends the message as JSON, None is an empty object."""

    def __init__(
        self,
        message: Any,
        status_code: int = 200,
        response_headers: dict[str, Any] | None = None,
        json_str: bool = False,
        run_function_failed: bool = False,
    ) -> None:
        given = response_headers or {}
        self.status_code = int(status_code)
        self.headers = ResponseHeaders()
        is_json = json_str or message is None
        if is_json:
            message = json.dumps({} if message is None else message)
        self.data: bytes = message.encode() if isinstance(message, str) else bytes(message)
        if not any(name.lower() == "content-type" for name in given):
            self.headers["Content-Type"] = "application/json" if is_json else "text/html; charset=utf-8"
        if run_function_failed:
            self.headers["x-ms-run-function-failed"] = "true"
        for name, value in given.items():
            for part in str(value).split(","):
                self.headers.add(name, part.strip())

    @property
    def status(self) -> str:
        """The status code as text."""
        return str(self.status_code)

    def get_data(self, as_text: bool = False) -> Any:
        """The body, as bytes or text."""
        return self.data.decode() if as_text else self.data

    def get_json(self) -> Any:
        """The body's JSON."""
        return json.loads(self.data)

    def set_data(self, value: Any) -> None:
        """Another body."""
        self.data = value.encode() if isinstance(value, str) else bytes(value)
