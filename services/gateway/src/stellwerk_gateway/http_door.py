"""The HTTP door: one ASGI application that sends each path to who answers it.

Requests to score never come here: `scoring/protocol.py` takes them before.
"""

import asyncio
import contextlib
import functools
import logging
import re
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn

from stellwerk_gateway import jobs_door, refusals
from stellwerk_gateway.asgi import Receive, Scope, Send, send_error, send_json
from stellwerk_gateway.backends import Backends
from stellwerk_gateway.connect_door import ConnectDoor
from stellwerk_gateway.door_certificate import DoorCertificate
from stellwerk_gateway.login import origin
from stellwerk_gateway.login.door import PATHS as LOGIN_PATHS
from stellwerk_gateway.login.door import LoginDoor
from stellwerk_gateway.scoring import statistics
from stellwerk_gateway.scoring.protocol import DoorProtocol
from stellwerk_gateway.scoring.router import Router
from stellwerk_platform.errors import NotFound, PermissionDenied, PlatformError

log = logging.getLogger(__name__)
_KEEP_ALIVE_SECONDS = 75
_DRAIN_SECONDS = 5


class HttpDoor:
    """The ASGI application."""

    def __init__(self, backends: Backends, connect: ConnectDoor, router: Router, login: LoginDoor) -> None:
        self._backends = backends
        self._router = router
        self._connect: Any = connect
        self._jobs = jobs_door.JobsDoor(backends)
        self._login = login

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        path = scope["path"]
        if path in self._connect.paths:
            try:
                scope = origin.with_session(scope, self._login.public_url)
            except PermissionDenied as refusal:
                refusals.report(path[1:], refusal, refusals.address_of(scope))
                await send_error(send, refusal)
                return
            await self._connect(scope, receive, send)
        elif match := statistics.PATH.fullmatch(path):
            await self._statistics(scope, send, match)
        elif jobs_door.is_route(path):
            await self._jobs(scope, receive, send)
        elif path in LOGIN_PATHS:
            await self._login(scope, send)
        elif path == "/healthz":
            await send_json(send, 200, {"status": "ok"})
        elif path == "/readyz":
            services = await self._backends.ready()
            ready = all(services.values())
            await send_json(send, 200 if ready else 503, {"ready": ready, "services": services})
        else:
            error = NotFound("PATH_NOT_FOUND", f"There is no {path[:200]} here.", "See docs/interfaces.md.")
            refusals.report_path(scope, error)
            await send_error(send, error)

    async def _statistics(self, scope: Scope, send: Send, match: re.Match[str]) -> None:
        authorization = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
        try:
            document = await statistics.page(self._router, match[1], match[2], authorization)
        except PlatformError as error:
            action = f"{scope['method']} /endpoints/{{endpoint}}/statistics"
            resource = f"workspaces/{match[1]}/endpoints/{match[2]}"
            refusals.report(action, error, refusals.address_of(scope), resource)
            await send_error(send, error)
        else:
            await send_json(send, 200, document)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the app decides when to stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures none."""
        yield


class HttpServer:
    """uvicorn on a socket that is open before the first request can come."""

    def __init__(
        self,
        listen: str,
        application: HttpDoor,
        router: Router,
        trusted_proxies: str = "",
        certificate: DoorCertificate | None = None,
    ) -> None:
        host, _, port = listen.rpartition(":")
        self._listener = socket.create_server((host, int(port)), backlog=2048)
        self.port: int = self._listener.getsockname()[1]
        self._server = _Server(
            uvicorn.Config(
                application,
                # uvicorn calls whatever makes a connection; its own annotation names classes only.
                http=functools.partial(DoorProtocol, router),  # type: ignore[arg-type]
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                # Else anybody on this machine could choose the address that the activity log shows.
                proxy_headers=bool(trusted_proxies),
                forwarded_allow_ips=trusted_proxies,
                ssl_certfile=str(certificate.chain) if certificate is not None else None,
                ssl_keyfile=str(certificate.key) if certificate is not None else None,
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
