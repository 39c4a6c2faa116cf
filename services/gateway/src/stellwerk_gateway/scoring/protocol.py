"""The HTTP door's connections: uvicorn's own, but scoring requests leave it at the end of their head.

ASGI costs a task, a scope and several awaits per request, more than the rest of the router
together. Slow heads are bounded here for all requests, which uvicorn does not do.
"""

import asyncio
import logging
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from stellwerk_gateway import jobs_door, refusals
from stellwerk_gateway.scoring.exchange import Exchange
from stellwerk_gateway.scoring.router import PREFIX, Router

log = logging.getLogger(__name__)
_PREFIX = PREFIX.encode()
# A page for operators and the routes of batch jobs, which need no speed.
_STATISTICS, _JOBS = b"/statistics", b"/jobs"
_HEAD_SECONDS = 10.0
# Before the first byte of a connection: browsers open some ahead of need.
_SILENT_SECONDS = 60.0
_MAX_HEAD_BYTES = 1 << 16
# So much of a body that nobody wants is still read, so that its client gets to read the answer.
_DISCARDED_BYTES, _DISCARD_SECONDS = 400_000_000, 5.0


def _is_for_people(url: bytes) -> bool:
    if url.endswith(_STATISTICS):
        return True
    return _JOBS in url and jobs_door.is_route(url.partition(b"?")[0].decode("latin-1"))


class DoorProtocol(HttpToolsProtocol):
    """One connection of a client."""

    def __init__(
        self,
        router: Router,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._router = router
        self._in_head = False
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._answering: Exchange | None = None
        self._discarded: int | None = None

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Waits for a request, but not for ever."""
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(_SILENT_SECONDS, self._silent)

    def data_received(self, data: bytes) -> None:
        """Parses what has come; a head has bounds in time and size."""
        super().data_received(data)
        if self._answering is not None:
            self._answering.watch_body()
        if not self._in_head:
            return
        self._head_bytes += len(data)
        if self._head_bytes > _MAX_HEAD_BYTES:
            self._refuse(b"431 Request Header Fields Too Large")
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(_HEAD_SECONDS, self._silent)

    def connection_lost(self, exc: Exception | None) -> None:
        """Takes the request along whose client has gone, and those behind it."""
        self._stop_head_timer()
        # Set first, for uvicorn looks at it.
        running, self._answering = self._answering, None
        if running is not None:
            running.client_gone()
        for waiting, _ in self.pipeline:
            if isinstance(waiting, Exchange):
                waiting.client_gone()
        super().connection_lost(exc)

    def resume_writing(self) -> None:
        """The client has caught up."""
        super().resume_writing()
        if self._answering is not None:
            self._answering.pause_answer(False)
        else:
            self.flow.resume_reading()

    def pause_writing(self) -> None:
        """The client reads slower than the replica answers."""
        super().pause_writing()
        if self._answering is not None:
            self._answering.pause_answer(True)

    # The parser

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        self._stop_head_timer()

    def on_headers_complete(self) -> None:
        """Sends the request the one way or the other."""
        self._in_head = False
        self._stop_head_timer()
        if not self.url.startswith(_PREFIX) or _is_for_people(self.url):
            super().on_headers_complete()
            return
        is_old = self.parser.get_http_version() == "1.0"
        exchange = Exchange(
            self._router,
            self,
            self.parser.get_method(),
            self.url,
            self.headers,
            is_old=is_old,
            keep_alive=not is_old and self.parser.should_keep_alive(),
        )
        earlier = self.cycle
        self.cycle = exchange  # type: ignore[assignment]  # stands in for one, see there
        if earlier is None or earlier.response_complete:
            self._begin(exchange)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((exchange, self.app))  # type: ignore[arg-type]

    def on_body(self, body: bytes) -> None:
        """A part of a body."""
        cycle: Any = self.cycle
        if not isinstance(cycle, Exchange):
            super().on_body(body)
        elif self._discarded is not None:
            self._discarded += len(body)
            if self._discarded > _DISCARDED_BYTES:
                self.transport.abort()
        else:
            try:
                cycle.receive(body)
            except Exception:
                self._broken()

    def on_message_complete(self) -> None:
        """The end of a body."""
        cycle: Any = self.cycle
        if not isinstance(cycle, Exchange):
            super().on_message_complete()
        elif self._discarded is not None:
            self.transport.close()
        else:
            try:
                cycle.received()
            except Exception:
                self._broken()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if isinstance(cycle, Exchange):
            self._begin(cycle)
        else:
            super()._start_asgi_task(cycle, app)

    # The exchange

    def _broken(self) -> None:
        """A defect here must not pass for a request that cannot be parsed."""
        log.exception("An unexpected error")
        self.transport.abort()

    def _begin(self, exchange: Exchange) -> None:
        self._answering = exchange
        exchange.start()

    def answered(self, exchange: Exchange) -> None:
        """An exchange has written its answer."""
        self._answering = None
        if not exchange.keep_alive:
            self._close_gently(exchange)
        self.on_response_complete()
        if self.flow.write_paused and self._answering is None:
            # A client that does not read its answers gets to ask no more.
            self.flow.pause_reading()

    def address(self, forwarded: str) -> str:
        """The client's address, from `X-Forwarded-For` where a trusted proxy says so."""
        peer = self.client[0] if self.client else ""
        proxies = self.config.forwarded_allow_ips if self.config.proxy_headers else ""
        return refusals.address_behind(str(proxies), peer, forwarded)

    def _close_gently(self, exchange: Exchange) -> None:
        """A client that still sends would not get to read the answer if the connection closed at once."""
        if exchange.is_received or self.transport.is_closing():
            self.transport.close()
            return
        self._discarded = 0
        self.flow.resume_reading()
        self.loop.call_later(_DISCARD_SECONDS, self.transport.close)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _silent(self) -> None:
        self._head_timer = None
        if self._answering is not None or (self.cycle is not None and not self.cycle.response_complete):
            # An earlier request is being answered; its end looks at the next one.
            self._head_timer = self.loop.call_later(_HEAD_SECONDS, self._silent)
        elif self._in_head:
            self._refuse(b"408 Request Timeout")
        else:
            self.transport.close()

    def _refuse(self, status: bytes) -> None:
        self.transport.write(b"HTTP/1.1 %b\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % status)
        self.transport.close()
