"""What an address says of the way to it: whether it stays on this machine, whether others can read along."""

import re
from urllib.parse import urlsplit

# An address that begins so is a door with a certificate.
TLS = "https://"
_LOOPBACK = re.compile(r"(?:https?://)?(?:localhost|127(?:\.\d{1,3}){3}|\[::1\])(?::\d{1,5})?(?:/.*)?")


def is_loopback(address: str) -> bool:
    """Whether a URL, or `host:port`, is on this machine. Other targets of gRPC never are."""
    return _LOOPBACK.fullmatch(address) is not None


def is_clear(address: str) -> bool:
    """Whether who is on the way to a URL, or `host:port`, can read along."""
    return bool(address) and not address.startswith((TLS, "unix:")) and not is_loopback(address)


def is_beside(gateway_url: str, grpc_address: str) -> bool:
    """Whether a URL has the host of a gRPC address, and protects as well."""
    host = _host(gateway_url)
    safe = gateway_url.startswith(TLS) or not grpc_address.startswith(TLS)
    return bool(host) and safe and host == _host(grpc_address)


def _host(address: str) -> str:
    """Of an HTTP URL, or of `host:port`; "" for what is neither."""
    _, is_url, rest = address.rpartition("://")
    if is_url and not address.startswith((TLS, "http://")):
        return ""
    try:
        return urlsplit(f"//{rest}").hostname or ""
    except ValueError:
        return ""
