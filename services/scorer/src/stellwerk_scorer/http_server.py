"""HTTP/1.1 on uvloop and httptools: from bytes to exchanges, and their answers back to bytes in order.

Own code, for a general server costs a request three times what this does: a task, an
ASGI scope and some messages for what are two callbacks here.
"""

import asyncio
import contextlib
import os
import socket
import ssl
import stat
from collections import deque
from collections.abc import Callable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast

import httptools

_LINGER_SECONDS = 2.0
# Of TLS: who says nothing is gone, and nobody waits for a last word.
_HANDSHAKE_SECONDS = 30.0
_SHUTDOWN_SECONDS = 1.0
KEEP_ALIVE_SECONDS = 75.0
# A request must be complete within this time.
_READ_SECONDS = 300.0
_MAX_HEADER_BYTES = 64 << 10
_MAX_PIPELINED = 64
# So much of a body that is too large is still read, so that its client gets to read the answer.
_DISCARD_FACTOR = 4
_STATUS = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode()
    for status in HTTPStatus
    if status.value >= 200
}
_UNIX = "unix:"
# A head and a small body leave as one piece; a large body is not copied for that.
_JOIN_BYTES = 64 << 10

Headers = Sequence[tuple[bytes, bytes]]


class Exchange:
    """A request, complete but for what is too large, and the place where its answer goes."""

    __slots__ = (
        "_answer",
        "_connection",
        "body",
        "gone",
        "headers",
        "is_too_large",
        "keep_alive",
        "method",
        "pairs",
        "target",
    )

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection
        self._answer: list[bytes] | None = None
        self.method = b""
        self.target = b""
        # Names in lower case, in the order of the request; `headers` has the last of each name.
        self.pairs: list[tuple[bytes, bytes]] = []
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.is_too_large = False
        self.keep_alive = True
        # Called when the client hangs up before its answer.
        self.gone: Callable[[], None] | None = None

    def answer(self, status: int, head: bytes, body: bytes, *, close: bool = False) -> None:
        """Sends the answer when those before it are sent; `head` are header lines, each with its end."""
        if close or self._connection.is_draining:
            self.keep_alive = False
        ending = b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n"
        first = _STATUS.get(status) or b"HTTP/1.1 %d Status\r\n" % status
        whole = b"%bcontent-length: %d\r\n%b%b" % (first, len(body), head, ending)
        if self.method == b"HEAD" or status in (204, 304):
            body = b""
        self._answer = [whole + body] if len(body) < _JOIN_BYTES else [whole, body]
        self._connection.flush()

    def take_answer(self) -> list[bytes] | None:
        """The answer's bytes, None while there is none."""
        return self._answer


class Connection(asyncio.Protocol):
    """One client; requests may be pipelined."""

    def __init__(self, server: "HttpServer") -> None:
        self._server = server
        self._transport: asyncio.Transport
        self._parser = httptools.HttpRequestParser(self)
        self._exchanges: deque[Exchange] = deque()
        self._current: Exchange | None = None
        self._chunks: list[bytes] = []
        self._size = 0
        self._header_size = 0
        self._is_paused = False
        self._is_writable = True
        # Of the loop's clock: since when it is idle, or since when a request arrives.
        self.since = 0.0

    @property
    def is_draining(self) -> bool:
        """Whether this connection ends after what is under way."""
        return self._server.is_draining

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._exchanges and self._current is None

    def is_overdue(self, now: float) -> bool:
        """Whether it has been idle, or its request incomplete, for too long."""
        if self._exchanges:
            return False
        return now - self.since > (KEEP_ALIVE_SECONDS if self._current is None else _READ_SECONDS)

    def close(self) -> None:
        """Hangs up."""
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has come."""
        self._transport = cast(asyncio.Transport, transport)
        self.since = self._server.now()
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone; nobody waits for what it asked."""
        self._server.connections.discard(self)
        for exchange in self._exchanges:
            if exchange.gone is not None:
                exchange.gone()
        self._exchanges.clear()
        self._current = None

    def pause_writing(self) -> None:
        """The client does not read: neither do we."""
        self._is_writable = False
        self._throttle()

    def resume_writing(self) -> None:
        """The client reads again."""
        self._is_writable = True
        self._throttle()

    def data_received(self, data: bytes) -> None:
        """Some of a request, or several of them."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # not taken up; the connection ends with the answer
        except httptools.HttpParserError:
            self._refuse(400, "This is no HTTP/1.1 request.")

    def on_message_begin(self) -> None:
        """A request begins."""
        self._current = Exchange(self)
        self._chunks = []
        self._size = self._header_size = 0
        self.since = self._server.now()

    def on_url(self, url: bytes) -> None:
        """The request's target, or a part of it."""
        if self._current is not None:
            self._current.target += url

    def on_header(self, name: bytes, value: bytes | None) -> None:
        """One header."""
        self._header_size += len(name) + len(value or b"")
        if self._current is not None and self._header_size <= _MAX_HEADER_BYTES:
            self._current.pairs.append((name.lower(), value or b""))

    def on_headers_complete(self) -> None:
        """All headers are there."""
        exchange = self._current
        if exchange is None:
            return
        exchange.method = self._parser.get_method()
        exchange.headers = dict(exchange.pairs)
        exchange.keep_alive = self._parser.should_keep_alive()
        if self._header_size + len(exchange.target) > _MAX_HEADER_BYTES:
            self._refuse(431, "The request's headers are too large.")
            return
        if self._parser.should_upgrade():
            exchange.keep_alive = False
            if b"content-length" in exchange.headers or b"transfer-encoding" in exchange.headers:
                self._refuse(400, "This server upgrades to nothing.")
                return
        limit, length = self._server.max_body_bytes, exchange.headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > limit:
            exchange.is_too_large = True
            if b"expect" in exchange.headers or int(length) > _DISCARD_FACTOR * limit:
                self._hand_over(exchange)
        elif (
            exchange.headers.get(b"expect", b"").lower() == b"100-continue"
            and self._parser.get_http_version() != "1.0"
        ):
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """Some of the body."""
        if self._current is None:
            return
        self._size += len(body)
        if self._size <= self._server.max_body_bytes and not self._current.is_too_large:
            self._chunks.append(body)
            return
        self._chunks.clear()
        self._current.is_too_large = True
        if self._size > _DISCARD_FACTOR * self._server.max_body_bytes:
            self._hand_over(self._current)

    def on_message_complete(self) -> None:
        """The request is whole."""
        exchange = self._current
        if exchange is not None:
            exchange.body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
            self._hand_over(exchange)

    def _hand_over(self, exchange: Exchange) -> None:
        self._current = None
        self._chunks = []
        self._exchanges.append(exchange)
        if len(self._exchanges) >= _MAX_PIPELINED:
            self._throttle()
        self._server.handle(exchange)

    def _refuse(self, status: int, message: str) -> None:
        """An answer to what is no request; the end of the connection."""
        exchange = self._current or Exchange(self)
        self._current = None
        if exchange in self._exchanges or self._transport.is_closing():
            return
        self._exchanges.append(exchange)
        body = b'{"error":"%b","reason":"INVALID_REQUEST"}' % message.encode()
        exchange.answer(status, b"content-type: application/json\r\n", body, close=True)

    def flush(self) -> None:
        """Sends the answers that are ready and whose turn it is."""
        exchanges = self._exchanges
        while exchanges:
            answer = exchanges[0].take_answer()
            if answer is None:
                return
            exchange = exchanges.popleft()
            if len(answer) == 1:
                self._transport.write(answer[0])
            else:
                self._transport.writelines(answer)
            if not exchange.keep_alive:
                exchanges.clear()
                self._current = None
                self._transport.close()
                return
        self.since = self._server.now()
        if self._is_paused:
            self._throttle()

    def _throttle(self) -> None:
        wanted = not self._is_writable or len(self._exchanges) >= _MAX_PIPELINED
        if wanted != self._is_paused and not self._transport.is_closing():
            self._is_paused = wanted
            if wanted:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()


class HttpServer:
    """Listens on one or several addresses: `host:port`, with `secured` over TLS, and `unix:/path`."""

    def __init__(
        self, handle: Callable[[Exchange], None], max_body_bytes: int, secured: ssl.SSLContext | None = None
    ) -> None:
        loop = asyncio.get_running_loop()
        self.handle = handle
        self.max_body_bytes = max_body_bytes
        self.connections: set[Connection] = set()
        self.is_draining = False
        self.now = loop.time
        self._loop = loop
        self._secured = secured
        self._servers: list[asyncio.Server] = []
        self._paths: list[Path] = []
        self._sweeper: asyncio.TimerHandle | None = None

    async def listen(self, address: str) -> str:
        """Listens; the address with the port that was chosen. Raises OSError or ValueError."""
        if address.startswith(_UNIX):
            path = Path(address.removeprefix(_UNIX))
            _prepare(path)
            listener: Any = await self._loop.create_unix_server(
                lambda: Connection(self), str(path), backlog=2048
            )
            self._paths.append(path)
            found = address
        else:
            host, _, port = address.rpartition(":")
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            bound = socket.create_server((host.strip("[]"), int(port)), family=family, backlog=2048)
            listener = await self._loop.create_server(lambda: Connection(self), sock=bound, **self._tls())
            found = f"{host}:{bound.getsockname()[1]}"
        self._servers.append(listener)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(KEEP_ALIVE_SECONDS / 10, self._sweep)
        return found

    def _tls(self) -> dict[str, Any]:
        if self._secured is None:
            return {}
        return {
            "ssl": self._secured,
            "ssl_handshake_timeout": _HANDSHAKE_SECONDS,
            "ssl_shutdown_timeout": _SHUTDOWN_SECONDS,
        }

    async def stop(self, drain_seconds: float) -> None:
        """Takes no more requests, lets those under way end, hangs up.

        For a moment it still takes what comes: a door that has not heard of the end yet may send on a
        connection that is idle, and could not know whether a request that met a closed one was run.
        """
        self.is_draining = True
        if self.connections:
            lingering = min(_LINGER_SECONDS, drain_seconds)
            drain_seconds -= lingering
            await asyncio.sleep(lingering)
        for server in self._servers:
            server.close()
        for path in self._paths:
            path.unlink(missing_ok=True)
        if self._sweeper is not None:
            self._sweeper.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_seconds):
                while self.connections:
                    for connection in [item for item in self.connections if item.is_idle]:
                        connection.close()
                    await asyncio.sleep(0.01)
        for connection in list(self.connections):
            connection.close()

    def _sweep(self) -> None:
        now = self.now()
        for connection in [item for item in self.connections if item.is_overdue(now)]:
            connection.close()
        self._sweeper = self._loop.call_later(KEEP_ALIVE_SECONDS / 10, self._sweep)


def _prepare(path: Path) -> None:
    """Makes room: removes the socket of a process that is no more, but none that is listened on."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists() or not stat.S_ISSOCK(os.stat(path).st_mode):
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink()
