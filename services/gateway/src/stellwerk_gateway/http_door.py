"""The HTTP door: one ASGI application that sends each path to who answers it.

The outside world fixes these paths, so they are matched by hand: a router would only add
its own time to every scoring request.
"""

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from typing import Any

import uvicorn

from stellwerk_gateway.backends import Backends
from stellwerk_gateway.connect_door import ConnectDoor
from stellwerk_platform.errors import NotFound, PlatformError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Header = tuple[bytes, bytes]

log = logging.getLogger(__name__)
ENDPOINTS_PREFIX = "/endpoints/"
_KEEP_ALIVE_SECONDS = 75
_DRAIN_SECONDS = 5


class HttpDoor:
    """The ASGI application."""

    def __init__(self, backends: Backends, connect: ConnectDoor) -> None:
        self._backends = backends
        self._connect: Any = connect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        path = scope["path"]
        if path in self._connect.paths:
            await self._connect(scope, receive, send)
        elif path == "/healthz":
            await send_json(send, 200, {"status": "ok"})
        elif path == "/readyz":
            services = await self._backends.ready()
            ready = all(services.values())
            await send_json(send, 200 if ready else 503, {"ready": ready, "services": services})
        else:
            await send_error(
                send, NotFound("PATH_NOT_FOUND", f"There is no {path[:200]} here.", "See docs/interfaces.md.")
            )


async def send_json(
    send: Send, status: int, document: dict[str, Any], headers: Sequence[Header] = ()
) -> None:
    """Answers with a JSON document."""
    body = json.dumps(document, separators=(",", ":")).encode()
    await send_response(send, status, [(b"content-type", b"application/json"), *headers], body)


async def send_error(send: Send, error: PlatformError, headers: Sequence[Header] = ()) -> None:
    """Answers with `{error, reason, cure}` and the error's HTTP status."""
    document = {"error": error.message, "reason": error.reason}
    if error.cure:
        document["cure"] = error.cure
    await send_json(send, error.http_status, document, headers)


async def send_response(send: Send, status: int, headers: Sequence[Header], body: bytes) -> None:
    """Answers with a whole body."""
    headers = [*headers, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the app decides when to stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures none."""
        yield


class HttpServer:
    """uvicorn on a socket that is open before the first request can come."""

    def __init__(self, listen: str, application: HttpDoor) -> None:
        host, _, port = listen.rpartition(":")
        self._listener = socket.create_server((host, int(port)), backlog=2048)
        self.port: int = self._listener.getsockname()[1]
        self._server = _Server(
            uvicorn.Config(
                application,
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=_DRAIN_SECONDS,
            )
        )
        self._serving: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts to answer."""
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._listener]))

    async def stop(self) -> None:
        """Lets running requests end for some seconds, then stops."""
        self._server.should_exit = True
        if self._serving is not None:
            await self._serving
        self._listener.close()
