"""Composition of the scorer: settings, worker, HTTP, gRPC, and their end."""

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import Iterator

import uvicorn

from stellwerk_platform import app
from stellwerk_platform.auth import TokenVerifier
from stellwerk_platform.errors import Unavailable
from stellwerk_platform.grpc_client import connect
from stellwerk_scorer.auth import invoker
from stellwerk_scorer.config import Settings
from stellwerk_scorer.data_plane import DataPlane
from stellwerk_scorer.domain import Model
from stellwerk_scorer.grpc_service import GrpcServer
from stellwerk_scorer.http import HttpApp
from stellwerk_scorer.worker import EXIT_LOAD_FAILED
from stellwerk_scorer.worker_client import WorkerClient
from stellwerk_scorer.worker_process import LoadFailed

log = logging.getLogger(__name__)
_KEEP_ALIVE_SECONDS = 75


class _HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers: the app decides when to stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures none."""
        yield


# uvicorn tells of each start and stop, and so do we.
logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


async def compose(process: app.App, settings: Settings) -> None:
    """Starts to listen at once, so that health is answered while the script loads."""
    channel = connect(settings.secrets_address)
    process.defer(channel.close)
    verify = invoker(TokenVerifier(channel), settings.scorer_endpoint)

    async def on_ready(_ready: bool) -> None:
        await grpc_server.set_ready(plane.ready)

    client = WorkerClient(settings.scorer_python, settings.scorer_script, on_ready)
    model = Model(settings.scorer_model_name, settings.scorer_model_version)
    plane = DataPlane(model, client, settings.scorer_timeout_ms / 1000)
    limit = settings.scorer_max_body_bytes

    with _listening(settings.scorer_http_listen):
        listener = _listen(settings.scorer_http_listen)
    with _listening(settings.scorer_grpc_listen):
        grpc_server = GrpcServer(settings.scorer_grpc_listen, plane, verify, limit)
    await grpc_server.start()
    http_server = _http_server(HttpApp(plane, verify, limit), settings.scorer_drain_seconds)
    serving = asyncio.create_task(http_server.serve(sockets=[listener]))
    supervisor = asyncio.create_task(client.run())

    async def stop_serving() -> None:
        plane.drain()
        http_server.should_exit = True
        await asyncio.gather(serving, grpc_server.stop(settings.scorer_drain_seconds), return_exceptions=True)

    # In the opposite order: what is under way ends before its worker does.
    process.defer(lambda: _cancel(supervisor))
    process.defer(stop_serving)
    # Not the supervisor itself, for what runs in the background ends first of all.
    process.background(_watch(supervisor, serving))
    host = settings.scorer_http_listen.rpartition(":")[0]
    log.info("listening on http=%s:%d grpc=%s:%d", host, listener.getsockname()[1], host, grpc_server.port)


def main() -> int:
    """Serves until SIGTERM. Exit code 3: the scoring script cannot be served, and the log says why."""
    try:
        app.run("scorer", Settings, compose)
    except LoadFailed as error:
        print(
            f"{error.details}stellwerk-scorer: {error.reason}: {error.message}", file=sys.stderr, flush=True
        )
        return EXIT_LOAD_FAILED
    return 0


def _http_server(application: HttpApp, drain_seconds: int) -> _HttpServer:
    config = uvicorn.Config(
        application,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=drain_seconds,
    )
    return _HttpServer(config)


@contextlib.contextmanager
def _listening(address: str) -> Iterator[None]:
    """Says which address cannot be listened on."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        cure = "Choose another port, or end the process that has it."
        raise Unavailable("ADDRESS_UNAVAILABLE", f"Cannot listen on {address}: {error}.", cure) from error


def _listen(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    listener = socket.create_server((host, int(port)), backlog=2048)
    listener.setblocking(False)
    return listener


async def _watch(*tasks: asyncio.Task[None]) -> None:
    """Ends, or fails, as soon as one of the tasks does."""
    done, _pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
