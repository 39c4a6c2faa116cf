"""The response that a script may return to choose status, headers and body itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.cookies import SimpleCookie
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

    def keys(self) -> list[str]:
        """All names."""
        return [name for name, _ in self._pairs]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._pairs)

    def getlist(self, name: str) -> list[str]:
        """All values of a name."""
        return [value for key, value in self._pairs if key.lower() == name.lower()]

    def setdefault(self, name: str, default: object) -> str:
        """The first value, which is the default if there was none."""
        if name not in self:
            self.add(name, default)
        return self[name]

    def update(self, *others: Any, **more: object) -> None:
        """Sets the headers of a mapping."""
        for name, value in dict(*others, **more).items():
            self[name] = value

    def __delitem__(self, name: str) -> None:
        self.remove(name)

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
        # Flask takes "404 Gone" too.
        self.status_code = int(str(status_code).split()[0])
        self.headers = ResponseHeaders()
        is_json = json_str or message is None
        if is_json:
            message = json.dumps({} if message is None else message)
        self.data: bytes = _bytes(message)
        if not any(name.lower() == "content-type" for name in given):
            self.headers["Content-Type"] = "application/json" if is_json else "text/html; charset=utf-8"
        if run_function_failed:
            self.headers["x-ms-run-function-failed"] = "true"
        for name, value in given.items():
            for part in str(value).split(","):
                self.headers.add(name, part.strip())

    @property
    def content_type(self) -> str | None:
        """The header of that name."""
        return str(self.headers.get("Content-Type")) if "Content-Type" in self.headers else None

    @content_type.setter
    def content_type(self, value: str) -> None:
        self.headers["Content-Type"] = value

    @property
    def mimetype(self) -> str:
        """The content type without its parameters."""
        return (self.content_type or "").partition(";")[0].strip().lower()

    @mimetype.setter
    def mimetype(self, value: str) -> None:
        self.content_type = f"{value}; charset=utf-8" if value.startswith("text/") else value

    @property
    def is_json(self) -> bool:
        """Whether the content type is JSON's."""
        return self.mimetype == "application/json" or self.mimetype.endswith("+json")

    @property
    def json(self) -> Any:
        """The body's JSON."""
        return self.get_json()

    @property
    def content_length(self) -> int:
        """Of the body in bytes."""
        return len(self.data)

    def set_cookie(self, key: str, value: str = "", path: str = "/", **attributes: Any) -> None:
        """Adds a cookie; attributes as Flask names them (`max_age`, `secure`, `httponly`, `samesite`)."""
        jar: SimpleCookie = SimpleCookie()
        jar[key] = value
        jar[key]["path"] = path
        for name, given in attributes.items():
            if given not in (None, False):
                jar[key][name.replace("_", "-")] = given
        self.headers.add("Set-Cookie", jar[key].OutputString())

    @property
    def status(self) -> str:
        """The status code as text."""
        return str(self.status_code)

    def get_data(self, as_text: bool = False) -> Any:
        """The body, as bytes or text."""
        return self.data.decode() if as_text else self.data

    def get_json(self, force: bool = False, silent: bool = False) -> Any:
        """The body's JSON."""
        return json.loads(self.data)

    def set_data(self, value: Any) -> None:
        """Another body."""
        self.data = _bytes(value)


def _bytes(message: Any) -> bytes:
    """The body; of an iterable its parts, one after the other."""
    if isinstance(message, str):
        return message.encode()
    if isinstance(message, (bytes, bytearray, memoryview)):
        return bytes(message)
    return b"".join(part.encode() if isinstance(part, str) else bytes(part) for part in message)
