"""Composition of the gateway: two doors over the same channels."""

import logging

from stellwerk_gateway.backends import Backends
from stellwerk_gateway.config import Settings
from stellwerk_gateway.connect_door import ConnectDoor
from stellwerk_gateway.forward import Forwarder
from stellwerk_gateway.grpc_door import GrpcDoor
from stellwerk_gateway.http_door import HttpDoor, HttpServer
from stellwerk_platform import app

log = logging.getLogger(__name__)


async def compose(process: app.App, settings: Settings) -> None:
    """Opens the doors."""
    backends = Backends(settings.backends())
    process.defer(backends.close)
    forwarder = Forwarder(backends)
    grpc_door = GrpcDoor(settings.listen, [forwarder])
    await grpc_door.start()

    async def stop_grpc() -> None:
        forwarder.stop()
        await grpc_door.stop()

    process.defer(stop_grpc)
    http_server = HttpServer(settings.http_listen, HttpDoor(backends, ConnectDoor(backends)))
    http_server.start()
    process.defer(http_server.stop)
    log.info("The gateway answers HTTP on port %d and gRPC on port %d", http_server.port, grpc_door.port)


def main() -> None:
    """Serves until stopped."""
    app.run("gateway", Settings, compose)


if __name__ == "__main__":
    main()
