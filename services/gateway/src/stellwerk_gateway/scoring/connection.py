"""One HTTP/1.1 connection to a replica, by callbacks: no task and no future per request.

Own code, because every asyncio client at hand costs more per request than the replica
itself (docs/decisions/065); httptools does the parsing.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Protocol

import httptools

from stellwerk_gateway.asgi import Header

log = logging.getLogger(__name__)
# An answer's head is some hundred bytes; a replica that sends more than this is not one.
_MAX_HEAD_BYTES = 1 << 16
_NO_BODY = frozenset({204, 304})


class Asker(Protocol):
    """Who waits for an answer on a connection; each method is called by the connection."""

    def answer_head(self, status: int, headers: Sequence[Header], length: int | None) -> None:
        """The head has come; `length` of the body in bytes, None when nobody knows."""

    def answer_body(self, data: bytes) -> None:
        """A part of the body has come."""

    def answer_end(self) -> None:
        """The answer is whole; the connection is not the asker's any more."""

    def answer_flush(self) -> None:
        """All that one read brought has been told."""

    def lost(self, answered: bool) -> None:
        """The connection broke; `answered` says whether any of the answer had come."""

    def writable(self, yes: bool) -> None:
        """Whether more of the request's body may be written now."""


class Owner(Protocol):
    """Whom a connection belongs to."""

    def freed(self, connection: "Connection") -> None:
        """It may be used again."""

    def closed(self, connection: "Connection") -> None:
        """It has ended."""


class Connection(asyncio.Protocol):
    """A connection; `ask` while nobody else does."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._parser = httptools.HttpResponseParser(self)
        self._transport: Any = None
        self._asker: Asker | None = None
        self._headers: list[Header] = []
        self._head_bytes = 0
        self._status = 0
        self._headless = False
        self._answering = False
        self._until_close = False
        self._is_paused = False
        self.is_sent = True
        self.idle_since = 0.0

    @property
    def is_open(self) -> bool:
        """Whether a request can be written."""
        return self._transport is not None and not self._transport.is_closing()

    def ask(self, asker: Asker, data: bytes, *, is_whole: bool, is_head: bool = False) -> None:
        """Sends a request, or with `is_whole` False the beginning of one: `send` sends the rest."""
        self._asker = asker
        self._headless = is_head
        self._answering = False
        self._head_bytes = 0
        self.is_sent = is_whole
        self._transport.write(data)

    def send(self, data: bytes, is_last: bool) -> None:
        """Sends more of a request's body, framed already."""
        if data:
            self._transport.write(data)
        self.is_sent = is_last

    def abandon(self) -> None:
        """Closes the connection: nobody wants its answer any more."""
        self._asker = None
        if self._transport is not None:
            self._transport.abort()

    def pause(self, yes: bool) -> None:
        """Stops or goes on reading the answer, whose reader is slower."""
        if self.is_open and yes != self._is_paused:
            self._is_paused = yes
            if yes:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remembers the transport."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Feeds the parser; an answer that nobody asked for closes the connection."""
        asker = self._asker
        if asker is None:
            self.abandon()
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if isinstance(error, httptools.HttpParserCallbackError):
                log.error("An unexpected error", exc_info=error)
            self._break()
            return
        if self._asker is not asker:
            # The answer is whole, and the next request may be on its way already.
            return
        asker.answer_flush()
        if not self._answering:
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD_BYTES:
                self._break()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tells the asker, for whom an answer without a length ends here."""
        self._owner.closed(self)
        if self._asker is None:
            return
        if self._answering and self._until_close and exc is None:
            self._finish()
        else:
            self._break()

    def pause_writing(self) -> None:
        """The replica reads slower than the client sends."""
        if self._asker is not None:
            self._asker.writable(False)

    def resume_writing(self) -> None:
        """The replica has caught up."""
        if self._asker is not None:
            self._asker.writable(True)

    # httptools

    def on_message_begin(self) -> None:
        """A new answer."""
        self._headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The head is whole; 1xx are none of ours."""
        self._status = self._parser.get_status_code()
        if self._status < 200 or self._asker is None:
            return
        self._answering = True
        length: int | None = None
        chunked = False
        for name, value in self._headers:
            if name == b"content-length":
                length = int(value)
            elif name == b"transfer-encoding":
                chunked = True
        if self._headless or self._status in _NO_BODY:
            length, chunked = 0, False
        self._until_close = length is None and not chunked
        self._asker.answer_head(self._status, self._headers, length)
        if self._headless:
            # The parser does not know that no body follows, so the connection is of no more use.
            self._finish()

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        if self._asker is not None and self._answering:
            self._asker.answer_body(body)

    def on_message_complete(self) -> None:
        """The answer is whole, unless it was a 1xx."""
        if self._answering and self._asker is not None:
            self._finish()

    def _finish(self) -> None:
        asker, self._asker = self._asker, None
        assert asker is not None
        reusable = self.is_open and self.is_sent and not self._headless and self._parser.should_keep_alive()
        self.pause(False)
        # Before the asker is told, for that wakes the next one.
        if reusable:
            self._owner.freed(self)
        elif self.is_open:
            self._transport.close()
        asker.answer_end()

    def _break(self) -> None:
        asker, self._asker = self._asker, None
        self._transport.abort()
        if asker is not None:
            asker.lost(self._answering)
