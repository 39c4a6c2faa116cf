"""Cross-origin requests, for browsers: which pages may read an answer (`AML_CORS_ORIGINS`)."""

from collections.abc import Mapping, Set

from stellwerk_scorer.bodies import lines

_METHODS = b"GET, POST"


def simple(headers: Mapping[bytes, bytes], origins: Set[str]) -> bytes:
    """Header lines that let the page of an allowed origin read the answer."""
    origin = headers.get(b"origin", b"")
    if "*" in origins:
        return lines([(b"access-control-allow-origin", b"*")])
    if origin.decode("latin-1").lower() not in origins:
        return b""
    return lines([(b"access-control-allow-origin", origin), (b"vary", b"Origin")])


def preflight(headers: Mapping[bytes, bytes], origins: Set[str]) -> bytes:
    """Header lines that answer a browser's question before the request; the origin's is added to all."""
    if not origins or not simple(headers, origins):
        return b""
    pairs = [(b"access-control-allow-methods", _METHODS)]
    asked = headers.get(b"access-control-request-headers")
    if asked:
        pairs.append((b"access-control-allow-headers", asked))
    return lines(pairs)
