"""The gRPC door: one server for every service, with health and reflection."""

from collections.abc import Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from stellwerk_gateway import catalog
from stellwerk_gateway.door_certificate import DoorCertificate
from stellwerk_platform.grpc_server import OPTIONS
from stellwerk_platform.identity import Identity

_DRAIN_SECONDS = 5.0
_HEALTH: str = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


class GrpcDoor:
    """Answers health and reflection itself; everything else is for the handlers."""

    def __init__(
        self,
        listen: str,
        handlers: Sequence[grpc.GenericRpcHandler],
        agent_listen: str = "",
        identity: Identity | None = None,
        certificate: DoorCertificate | None = None,
    ) -> None:
        """In clear without a certificate. `agent_listen` is a second port for agents, behind TLS that
        wants their certificates."""
        self._server = grpc.aio.server(options=OPTIONS)
        self._health = health_aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            [*catalog.reflected(), _HEALTH, reflection.SERVICE_NAME], self._server
        )
        self._server.add_generic_rpc_handlers(tuple(handlers))
        if certificate is not None:
            self.port = self._server.add_secure_port(listen, certificate.server_credentials())
        else:
            self.port = self._server.add_insecure_port(listen)
        if agent_listen and identity is not None:
            self._server.add_secure_port(agent_listen, identity.server_credentials())

    async def start(self) -> None:
        """Starts to answer and reports SERVING."""
        await self._server.start()
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)

    async def stop(self) -> None:
        """Reports NOT_SERVING, lets unary calls end for some seconds, then stops."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(_DRAIN_SECONDS)
