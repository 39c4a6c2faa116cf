"""Composition of the gateway: two doors over the same channels."""

import logging
from contextlib import AbstractAsyncContextManager

from stellwerk_gateway.backends import Backends
from stellwerk_gateway.config import Settings
from stellwerk_gateway.connect_door import ConnectDoor
from stellwerk_gateway.doctor import Doctor
from stellwerk_gateway.door_certificate import certificate_of
from stellwerk_gateway.forward import Forwarder
from stellwerk_gateway.grpc_door import GrpcDoor
from stellwerk_gateway.http_door import HttpDoor, HttpServer
from stellwerk_gateway.login.cookies import Seal
from stellwerk_gateway.login.door import LoginDoor
from stellwerk_gateway.scoring.access import Access, InvokeTokens
from stellwerk_gateway.scoring.grpc import ScoringHandler
from stellwerk_gateway.scoring.reporter import LoadReporter
from stellwerk_gateway.scoring.router import Limits, Router
from stellwerk_gateway.scoring.routes import RouteTable, follow
from stellwerk_gateway.scoring.statistics import Metrics
from stellwerk_gateway.scoring.tracing import Tracer
from stellwerk_platform import app, probes
from stellwerk_platform.access import Guard
from stellwerk_platform.auth import CallerCredentials, TokenVerifier
from stellwerk_platform.bus import Bus
from stellwerk_platform.memberships import Memberships, Registry
from stellwerk_platform.revocations import Revocations, from_secrets
from stellwerk_protos.inference.v1 import loads_pb2_grpc
from stellwerk_protos.secrets.v1 import tokens_pb2_grpc

log = logging.getLogger(__name__)
_REPORT_SECONDS = 2.0


async def compose(process: app.App, settings: Settings) -> None:
    """Opens the doors."""
    certificate = certificate_of(settings)
    if settings.nats_url:
        process.background(process.activity.run_apart(lambda: _bus(process, settings)))
    backends = Backends(settings.backends(), identity=process.identity)
    process.defer(backends.close)
    secrets = process.connect("secrets", settings.secrets_address)
    inference = process.connect("inference", settings.inference_address)
    credentials = CallerCredentials(secrets, settings.vault_role_id, settings.vault_secret_id)
    trusted = process.connect("secrets", settings.secrets_address, credentials)
    tokens = InvokeTokens(tokens_pb2_grpc.TokenServiceStub(trusted))
    registry = process.connect("registry", settings.registry_address, credentials)
    memberships, revocations = Memberships(Registry(registry)), Revocations(from_secrets(trusted))
    if settings.nats_url:
        process.background(app.follow_apart(lambda: _bus(process, settings), memberships, revocations))
    guard = Guard(TokenVerifier(secrets, revocations).verify, memberships, revocations)
    routes = RouteTable(tokens.issue, default_timeout_seconds=settings.scoring_timeout_seconds)
    admission = Access(guard, tokens.issue, routes)
    routes.on_lock_change(admission.forget)
    process.defer(routes.close)
    process.background(follow(routes, inference, credentials))
    loads = loads_pb2_grpc.LoadServiceStub(
        process.connect("inference", settings.inference_address, credentials)
    )
    reporter = LoadReporter(routes, lambda report: loads.ReportLoad(report, timeout=_REPORT_SECONDS))
    process.background(reporter.run())

    forwarder = Forwarder(backends)
    limits = Limits(
        max_body_bytes=settings.scoring_max_body_bytes,
        held_bytes=settings.scoring_held_bytes,
        park_seconds=settings.scoring_park_seconds,
    )
    router = Router(routes, admission, limits, Tracer(settings.scoring_traces_per_second))
    process.close(Metrics(settings, routes, process.identity).close)
    if process.identity is not None:
        probes.add_certificate(process.diagnosis, process.identity)
    probes.add_secrets(process.diagnosis, secrets, credentials)
    doctor = Doctor(backends, list(settings.backends()), process.diagnosis, guard, credentials)
    handlers = [forwarder, ScoringHandler(router), doctor.handler()]
    grpc_door = GrpcDoor(settings.listen, handlers, settings.agent_listen, process.identity, certificate)
    await grpc_door.start()

    async def stop_grpc() -> None:
        forwarder.stop()
        await grpc_door.stop()

    process.defer(stop_grpc)

    login_door = LoginDoor(
        secrets, Seal(settings.vault_secret_id), settings.oidc_client_secret, settings.public_url
    )
    http_door = HttpDoor(backends, ConnectDoor(backends), router, login_door)
    http_server = HttpServer(settings.http_listen, http_door, router, settings.trusted_proxies, certificate)
    http_server.start()
    process.defer(http_server.stop)
    log.info("The gateway answers HTTP on port %d and gRPC on port %d", http_server.port, grpc_door.port)


def _bus(process: app.App, settings: Settings) -> AbstractAsyncContextManager[Bus]:
    return Bus.connect(settings.nats_url, settings.namespace, process.name, settings.nats_seed)


def main() -> None:
    """Serves until stopped."""
    app.run("gateway", Settings, compose)


if __name__ == "__main__":
    main()
