"""The two cookies: what a login remembers until the provider sends the browser back, and the session.

A login's is encrypted and ends after ten minutes, so that the gateway need remember
nothing; the session's holds the key that the login gave. No script can read either.
"""

import base64
import json
from http.cookies import CookieError, SimpleCookie

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from stellwerk_gateway.asgi import Header, Scope

LOGIN_SECONDS = 600
_LOGIN, _SESSION = "stellwerk_login", "stellwerk_session"
# Browsers take a cookie of this name only from its own host, over https, for all paths.
_HOST_PREFIX = "__Host-"


class Seal:
    """Encrypts for the gateway itself; all its replicas share the secret."""

    def __init__(self, secret: str) -> None:
        key = HKDF(SHA256(), 32, salt=None, info=b"stellwerk login cookie").derive(secret.encode())
        self._fernet = Fernet(base64.urlsafe_b64encode(key))

    def close(self, content: dict[str, str]) -> str:
        """As text that nobody else can read or make."""
        return self._fernet.encrypt(json.dumps(content).encode()).decode()

    def open(self, text: str) -> dict[str, str] | None:
        """What was closed within the last ten minutes."""
        try:
            content: dict[str, str] = json.loads(self._fernet.decrypt(text.encode(), LOGIN_SECONDS))
        except InvalidToken:
            return None
        return content


def is_secure(scope: Scope) -> bool:
    """Whether the browser came by https."""
    return bool(scope.get("scheme") == "https")


def login_cookie(scope: Scope, value: str) -> Header:
    """Remembers a login; an empty value forgets it."""
    return _set(scope, _LOGIN, value, LOGIN_SECONDS if value else 0)


def session_cookie(scope: Scope, key: str, seconds: int) -> Header:
    """Signs the browser in; an empty key signs it out."""
    return _set(scope, _SESSION, key, seconds if key else 0)


def read_login(scope: Scope) -> str:
    """ "" without one."""
    return _read(scope, _LOGIN)


def read_session(scope: Scope) -> str:
    """The key, "" without one."""
    return _read(scope, _SESSION)


def header_of(scope: Scope, name: bytes) -> str:
    """The first header of this name, "" without one."""
    found = (value for key, value in scope["headers"] if key == name)
    return str(next(found, b"").decode("latin-1"))


def _name(scope: Scope, name: str) -> str:
    return _HOST_PREFIX + name if is_secure(scope) else name


def _set(scope: Scope, name: str, value: str, seconds: int) -> Header:
    secure = "; Secure" if is_secure(scope) else ""
    text = f"{_name(scope, name)}={value}; Max-Age={seconds}; Path=/; HttpOnly; SameSite=Lax{secure}"
    return b"set-cookie", text.encode()


def _read(scope: Scope, name: str) -> str:
    cookies: SimpleCookie = SimpleCookie()
    for key, value in scope["headers"]:
        if key == b"cookie":
            try:
                cookies.load(value.decode("latin-1"))
            except CookieError:
                continue
    found = cookies.get(_name(scope, name))
    return found.value if found is not None else ""
