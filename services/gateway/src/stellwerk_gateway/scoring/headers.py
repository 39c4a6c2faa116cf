"""Headers of a request: which of them the router reads, and which go on to the replica."""

from collections.abc import Sequence

from stellwerk_gateway.asgi import Header

# What belongs to one connection, is set anew, or is the platform's own to say.
_HOP = frozenset(
    {
        *(b"connection", b"keep-alive", b"proxy-connection", b"proxy-authorization", b"te", b"trailer"),
        *(b"transfer-encoding", b"upgrade", b"host", b"expect"),
        b"x-stellwerk-sample",
    }
)
# What the router reads itself.
_READ = frozenset(
    {
        *(b"authorization", b"x-request-id", b"x-ms-client-request-id", b"x-ms-request-id", b"traceparent"),
        *(b"content-length", b"azureml-model-deployment"),
    }
)
# In the names of the door's own cookies (login/cookies.py): a session's has a person's key, which is
# nothing for the code behind an endpoint, nor may that sign a browser in.
_OWN_COOKIES = b"stellwerk_"
# Values of `connection` that name no other header.
_PLAIN = frozenset({b"keep-alive", b"close"})
STICKY = b"x-stellwerk-sticky"


class Given:
    """What a request's headers say."""

    __slots__ = ("_values", "expects_continue", "length", "onward")

    def __init__(self) -> None:
        self._values: dict[bytes, bytes] = {}
        # Lines for the replica, each with its end.
        self.onward: list[bytes] = []
        self.expects_continue = False
        # Of the body in bytes; None if nobody said.
        self.length: int | None = None

    def value(self, name: bytes) -> bytes:
        """The value of the header that makes requests sticky: the endpoint's own, or ours."""
        return self._values.get(name, b"") or self._values.get(STICKY, b"")

    def text(self, name: bytes) -> str:
        """The value of a header, "" without one."""
        return self._values.get(name, b"").decode("latin-1")

    @property
    def authorization(self) -> str:
        """The caller's key."""
        return self.text(b"authorization")

    @property
    def request_id(self) -> str:
        """The caller's id of the request."""
        return self.text(b"x-request-id")

    @property
    def client_request_id(self) -> str:
        """Azure's second id, under its new name or its old one."""
        return self.text(b"x-ms-client-request-id") or self.text(b"x-ms-request-id")

    @property
    def deployment(self) -> str:
        """The deployment that the caller wants, whatever the split says."""
        return self.text(b"azureml-model-deployment")

    @property
    def is_preflight(self) -> bool:
        """Whether a browser asks if a page of another origin may send the request."""
        return b"origin" in self._values and b"access-control-request-method" in self._values

    @property
    def traceparent(self) -> bytes:
        """The caller's trace context."""
        return self._values.get(b"traceparent", b"")


def read(headers: Sequence[Header]) -> Given:
    """Reads a request's headers, whose names are in lower case."""
    given = Given()
    values, onward = given._values, given.onward
    for name, value in headers:
        values[name] = value
        if name == b"cookie":
            if value := _foreign_cookies(value):
                onward.append(b"cookie: %b\r\n" % value)
        elif name not in _HOP and name not in _READ:
            onward.append(b"%b: %b\r\n" % (name, value))
    if (length := values.get(b"content-length")) is not None:
        given.length = int(length)
    elif b"transfer-encoding" not in values:
        given.length = 0
    given.expects_continue = values.get(b"expect", b"").lower() == b"100-continue"
    if (connection := values.get(b"connection")) is not None and connection.lower() not in _PLAIN:
        named = tuple(name.strip().lower() + b": " for name in connection.split(b","))
        given.onward = [line for line in onward if not line.startswith(named)]
    return given


def forward(headers: Sequence[Header], dropped: frozenset[bytes]) -> tuple[list[bytes], set[bytes]]:
    """The lines of an answer's headers without the dropped ones, and their names."""
    lines: list[bytes] = []
    names: set[bytes] = set()
    named: list[bytes] = []
    for name, value in headers:
        if name == b"set-cookie" and _OWN_COOKIES in value:
            continue
        if name not in dropped:
            names.add(name)
            lines.append(b"%b: %b\r\n" % (name, value))
        elif name == b"connection" and value not in _PLAIN:
            named += [item.strip().lower() + b": " for item in value.split(b",")]
    if named:
        lines = [line for line in lines if not line.startswith(tuple(named))]
    return lines, names


def _foreign_cookies(value: bytes) -> bytes:
    return b"; ".join(part.strip() for part in value.split(b";") if _OWN_COOKIES not in part)
