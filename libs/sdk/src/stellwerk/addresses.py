"""What an address says of the way to it: whether it stays on this machine, whether others can read along.

What is not spelled plainly has no host here: parsers of URLs and gRPC, whose names may have a slash,
disagree on such addresses, and a project's file may use that.
"""

import re

# An address that begins so is a door with a certificate.
TLS = "https://"
_PLACE = r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
_TARGET = re.compile(rf"(?:https://)?{_PLACE}")
_URL = re.compile(rf"https?://{_PLACE}(?:/.*)?")
_LOOPBACK = re.compile(r"localhost|127(?:\.[0-9]{1,3}){3}|\[::1\]")


def is_loopback(grpc_address: str) -> bool:
    """Whether `host:port`, also after `https://`, is on this machine. Other targets of gRPC never are."""
    return _LOOPBACK.fullmatch(_host(_TARGET, grpc_address)) is not None


def is_loopback_url(url: str) -> bool:
    """Whether an HTTP URL is on this machine."""
    return _LOOPBACK.fullmatch(_host(_URL, url)) is not None


def is_clear(address: str) -> bool:
    """Whether who is on the way to a URL, or `host:port`, can read along."""
    if not address or address.startswith((TLS, "unix:")):
        return False
    return not is_loopback(address) and not is_loopback_url(address)


def is_beside(gateway_url: str, grpc_address: str) -> bool:
    """Whether a URL has the host of a gRPC address, and protects as well."""
    host = _host(_URL, gateway_url)
    safe = gateway_url.startswith(TLS) or not grpc_address.startswith(TLS)
    return bool(host) and safe and host == _host(_TARGET, grpc_address)


def _host(kind: re.Pattern[str], address: str) -> str:
    """In lower case, an IPv6 address in brackets; "" for what is not of the kind."""
    found = kind.fullmatch(address)
    return found["host"].lower() if found else ""
