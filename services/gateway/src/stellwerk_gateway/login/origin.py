"""Where a request comes from: a cookie goes along with requests that other sites cause, so it proves nothing.

A browser says in `Sec-Fetch-Site` or `Origin`, which no page can change, who caused a request.
"""

from urllib.parse import urlsplit

from stellwerk_gateway.asgi import Scope
from stellwerk_gateway.login.cookies import header_of, read_session
from stellwerk_platform.errors import PermissionDenied

_PATH_LENGTH = 2_000


def own_origin(scope: Scope, public_url: str) -> str:
    """`https://host` as browsers see it, without a slash at the end."""
    if public_url:
        parts = urlsplit(public_url)
        return f"{parts.scheme}://{parts.netloc}"
    return f"{scope.get('scheme', 'http')}://{header_of(scope, b'host')}"


def require_own(scope: Scope, public_url: str, *, typed: bool = False) -> None:
    """Raises `PermissionDenied` unless a page of this very origin caused the request.

    With `typed` the person may have, by typing the address.
    """
    site = header_of(scope, b"sec-fetch-site")
    if site:
        if site == "same-origin" or (typed and site == "none"):
            return
    elif header_of(scope, b"origin") == own_origin(scope, public_url):
        return
    raise PermissionDenied(
        "CROSS_SITE",
        "A cookie is good only for requests of Stellwerk's own pages.",
        "Send the header 'authorization: Bearer KEY'.",
    )


def with_session(scope: Scope, public_url: str) -> Scope:
    """The request with the session's key as if it had been shown; raises `PermissionDenied`.

    A key that is shown wins, and a request without cookie is left as it is.
    """
    if header_of(scope, b"authorization") or not (key := read_session(scope)):
        return scope
    require_own(scope, public_url)
    return {**scope, "headers": [*scope["headers"], (b"authorization", f"Bearer {key}".encode())]}


def own_path(text: str) -> str:
    """A path of this origin to send a browser to; "" for anything that may lead elsewhere."""
    if not text.startswith("/") or len(text) > _PATH_LENGTH or not text.isascii() or not text.isprintable():
        return ""
    # Browsers take a backslash for a slash, and two slashes for another host.
    return "" if "\\" in text or text.startswith("//") else text
