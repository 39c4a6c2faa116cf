"""Composition of the scorer: settings, workers, HTTP, gRPC, and their end."""

import asyncio
import contextlib
import functools
import logging
import sys
from collections.abc import Iterator

from stellwerk_platform import app
from stellwerk_platform.auth import TokenVerifier
from stellwerk_platform.errors import Unavailable
from stellwerk_platform.grpc_client import connect
from stellwerk_scorer.auth import Gate, Verify, anybody, invoker
from stellwerk_scorer.call import HttpSettings
from stellwerk_scorer.certificate import Certificate
from stellwerk_scorer.collection import Collection
from stellwerk_scorer.config import Settings
from stellwerk_scorer.data_plane import DataPlane
from stellwerk_scorer.domain import Model
from stellwerk_scorer.grpc_service import GrpcServer
from stellwerk_scorer.http import HttpApp
from stellwerk_scorer.http_server import HttpServer
from stellwerk_scorer.launch import Launch, Started
from stellwerk_scorer.mini_batches import BatchApp
from stellwerk_scorer.pool import Pool, PoolSettings
from stellwerk_scorer.worker import collecting
from stellwerk_scorer.worker.frames import EXIT_LOAD_FAILED
from stellwerk_scorer.worker_process import LoadFailed

log = logging.getLogger(__name__)


async def compose(process: app.App, settings: Settings, started: Started | None = None) -> None:
    """Starts to listen at once, so that health is answered while the script loads."""
    verify: Verify = anybody
    if not settings.scorer_local:
        channel = connect(settings.secrets_address)
        process.defer(channel.close)
        verify = invoker(TokenVerifier(channel), settings.scorer_endpoint)

    async def on_ready(_ready: bool) -> None:
        await grpc_server.set_ready(plane.ready)

    pool = Pool(Launch.of(settings), _pool_settings(settings), on_ready, started)
    model = Model(settings.scorer_model_name, settings.scorer_model_version)
    plane = DataPlane(model, pool, settings.scorer_timeout_ms / 1000)
    limit = settings.scorer_max_body_bytes
    gate = Gate(verify, is_open=settings.scorer_local)
    collection = Collection(collecting.Settings.from_environment())
    # At the very end: what was answered last is kept too.
    process.defer(lambda: asyncio.to_thread(collection.close))
    app_class = BatchApp if settings.scorer_batch_folder else HttpApp
    http_app = app_class(plane, gate, _http_settings(settings), collection)
    addresses = []
    certificate = Certificate.of(settings)
    secured = certificate.of_http() if certificate is not None else None
    http_server = HttpServer(http_app.handle, limit, secured)
    for address in settings.scorer_http_listen.split(","):
        with _listening(address):
            addresses.append(await http_server.listen(address.strip()))
    with _listening(settings.scorer_grpc_listen):
        grpc_server = GrpcServer(settings.scorer_grpc_listen, plane, gate, limit, certificate)
    await grpc_server.start()
    supervisor = asyncio.create_task(pool.run())

    async def stop_serving() -> None:
        plane.drain()
        drain = settings.scorer_drain_seconds
        await asyncio.gather(http_server.stop(drain), grpc_server.stop(drain), return_exceptions=True)

    # In the opposite order: what is under way ends before its worker does.
    process.defer(lambda: _cancel(supervisor))
    process.defer(stop_serving)
    # Not the supervisor itself, for what runs in the background ends first of all.
    process.background(_watch(supervisor))
    host = settings.scorer_grpc_listen.rpartition(":")[0]
    log.info("listening on http=%s grpc=%s:%d", ",".join(addresses), host, grpc_server.port)


def main(started: Started | None = None) -> int:
    """Serves until SIGTERM. Exit code 3: the scoring script cannot be served, and the log says why.

    `started` is the first worker, if it runs already.
    """
    try:
        app.run("scorer", Settings, functools.partial(compose, started=started))
    except LoadFailed as error:
        print(
            f"{error.details}stellwerk-scorer: {error.reason}: {error.message}", file=sys.stderr, flush=True
        )
        return EXIT_LOAD_FAILED
    return 0


def _pool_settings(settings: Settings) -> PoolSettings:
    return PoolSettings(
        workers=settings.scorer_workers,
        max_queue=settings.scorer_max_queue,
        max_batch_size=settings.scorer_max_batch_size,
        max_batch_wait_seconds=settings.scorer_max_batch_wait_ms / 1000,
        hands_ahead=not settings.scorer_batch_folder,
    )


def _http_settings(settings: Settings) -> HttpSettings:
    # Browsers write origins in lower case.
    origins = (origin.strip().lower() for origin in settings.scorer_cors_origins.split(","))
    return HttpSettings(
        cors_origins=frozenset(origin for origin in origins if origin),
        server_version=settings.scorer_server_version,
        max_body_bytes=settings.scorer_max_body_bytes,
        usage_is_open=not settings.scorer_certificate,
    )


@contextlib.contextmanager
def _listening(address: str) -> Iterator[None]:
    """Says which address cannot be listened on."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        cure = "Choose another port, or end the process that has it."
        raise Unavailable("ADDRESS_UNAVAILABLE", f"Cannot listen on {address}: {error}.", cure) from error


async def _watch(task: asyncio.Task[None]) -> None:
    """Ends, or fails, as soon as the task does."""
    await asyncio.wait([task])
    task.result()


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
