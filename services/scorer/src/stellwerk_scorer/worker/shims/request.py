"""The request that a script with `@rawhttp` gets: the part of Flask's that such scripts use."""

from __future__ import annotations

import email.parser
import email.policy
import io
import json
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from .headers import RequestHeaders

_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")


class MultiDict(dict):  # type: ignore[type-arg]  # a dict, for scripts that look for one
    """A dict of the first value of each key; `getlist` has them all."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__()
        self._all = pairs
        for name, value in pairs:
            self.setdefault(name, value)

    def getlist(self, name: str, type: Any = None) -> list[Any]:
        """All values of a key."""
        found = [value for key, value in self._all if key == name]
        return found if type is None else [type(value) for value in found]

    def items(self, multi: bool = False) -> Any:
        """Keys with their first values, or with `multi` each with all of them."""
        return list(self._all) if multi else super().items()

    def lists(self) -> list[tuple[str, list[Any]]]:
        """Keys with the lists of their values."""
        return [(name, self.getlist(name)) for name in self]

    def to_dict(self, flat: bool = True) -> dict[str, Any]:
        """A plain dict of the first values, or of the lists of all of them."""
        return dict(self) if flat else dict(self.lists())

    def get(self, name: str, default: Any = None, type: Any = None) -> Any:
        """The first value, converted by `type`; the default if there is none or it does not convert."""
        if name not in self:
            return default
        try:
            return self[name] if type is None else type(self[name])
        except ValueError:
            return default


class FileStorage(io.BytesIO):
    """An uploaded file."""

    def __init__(self, name: str, filename: str, content_type: str, data: bytes) -> None:
        super().__init__(data)
        self.name = name
        self.filename = filename
        self.content_type = self.mimetype = content_type

    @property
    def stream(self) -> FileStorage:
        """The file itself."""
        return self

    def save(self, path: str) -> None:
        """Writes it to disk."""
        with open(path, "wb") as file:
            file.write(self.getvalue())


class AMLRequest:
    """Method, address, headers and body of a request."""

    def __init__(self, method: str, target: str, headers: list[list[str]], data: bytes) -> None:
        parts = urlsplit(target)
        self.method = method
        self.path = unquote(parts.path)
        self.query_string = parts.query.encode()
        self.full_path = f"{self.path}?{parts.query}"
        self.headers = RequestHeaders(headers)
        self.host = str(self.headers.get("host", "localhost"))
        self.scheme = "http"
        self.is_secure = False
        self.script_root = self.root_path = ""
        self.remote_addr = "127.0.0.1"
        # The token that let the request in is not the script's.
        self.authorization = None
        self.host_url = self.root_url = self.url_root = f"http://{self.host}/"
        self.base_url = f"http://{self.host}{parts.path}"
        self.url = f"http://{self.host}{target}"
        self.args = MultiDict(parse_qsl(parts.query, keep_blank_values=True))
        self.content_type: str | None = self.headers.get("content-type")
        self.mimetype = (self.content_type or "").partition(";")[0].strip().lower()
        self.content_length = len(data)
        self._data = data
        self._parts: tuple[MultiDict, MultiDict] | None = None

    def __repr__(self) -> str:
        return f"<Request {self.url!r} [{self.method}]>"

    @property
    def data(self) -> bytes:
        """The body, unless it is a form's."""
        return b"" if self.mimetype in _FORMS else self._data

    def get_data(self, cache: bool = True, as_text: bool = False, parse_form_data: bool = False) -> Any:
        """The body, as bytes or text."""
        return self._data.decode(errors="replace") if as_text else self._data

    @property
    def stream(self) -> io.BytesIO:
        """The body as a file."""
        return io.BytesIO(self._data)

    @property
    def is_json(self) -> bool:
        """Whether the body says that it is JSON."""
        return self.mimetype == "application/json" or (
            self.mimetype.startswith("application/") and self.mimetype.endswith("+json")
        )

    @property
    def json(self) -> Any:
        """The body's JSON."""
        return self.get_json()

    def get_json(self, force: bool = False, silent: bool = False, cache: bool = True) -> Any:
        """The body's JSON; None with `silent` when it is none, or has another type and no `force`."""
        try:
            if not (force or self.is_json):
                raise ValueError(f"the content type {self.content_type!r} is not JSON")
            return json.loads(self._data)
        except ValueError:
            if silent:
                return None
            raise

    @property
    def form(self) -> MultiDict:
        """The fields of a form."""
        return self._form()[0]

    @property
    def files(self) -> MultiDict:
        """The files of a form."""
        return self._form()[1]

    @property
    def values(self) -> MultiDict:
        """Query parameters and form fields."""
        return MultiDict([*self.args.items(), *self.form.items()])

    @property
    def cookies(self) -> dict[str, str]:
        """Cookies by name."""
        # One by one: http.cookies gives up the whole header for a part that it does not know.
        parts = str(self.headers.get("cookie", "")).split(";")
        pairs = (part.strip().partition("=") for part in parts if part.strip())
        return {name: value.strip('"') for name, _, value in pairs}

    def _form(self) -> tuple[MultiDict, MultiDict]:
        if self._parts is None:
            fields: list[tuple[str, Any]] = []
            files: list[tuple[str, Any]] = []
            if self.mimetype == _FORMS[0]:
                fields = list(parse_qsl(self._data.decode(errors="replace"), keep_blank_values=True))
            elif self.mimetype == _FORMS[1]:
                fields, files = self._multipart()
            self._parts = MultiDict(fields), MultiDict(files)
        return self._parts

    def _multipart(self) -> tuple[list[tuple[str, Any]], list[tuple[str, Any]]]:
        head = f"content-type: {self.content_type}\r\n\r\n".encode()
        message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + self._data)
        fields: list[tuple[str, Any]] = []
        files: list[tuple[str, Any]] = []
        for part in message.iter_parts():
            name = str(part.get_param("name", "", "content-disposition"))
            data: Any = part.get_payload(decode=True) or b""
            filename = part.get_filename()
            if filename is None:
                fields.append((name, data.decode(errors="replace")))
            else:
                files.append((name, FileStorage(name, filename, part.get_content_type(), data)))
        return fields, files
