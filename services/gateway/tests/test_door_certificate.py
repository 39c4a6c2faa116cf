"""People's doors: in clear for this machine only, with a certificate for everybody else."""

import ssl
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.gateway.tests.backend import EchoBackend
from stellwerk_gateway import catalog
from stellwerk_gateway.backends import Backends
from stellwerk_gateway.config import Settings
from stellwerk_gateway.connect_door import ConnectDoor
from stellwerk_gateway.door_certificate import DoorCertificate, certificate_of
from stellwerk_gateway.grpc_door import GrpcDoor
from stellwerk_gateway.http_door import HttpDoor, HttpServer
from stellwerk_gateway.login.cookies import Seal
from stellwerk_gateway.login.door import LoginDoor
from stellwerk_gateway.scoring.router import Router
from stellwerk_platform.errors import FailedPrecondition

NOBODY = "127.0.0.1:9"
SETTINGS = Settings(
    listen="127.0.0.1:0",
    http_listen="127.0.0.1:0",
    vault_role_id="gateway",
    vault_secret_id="x",
    registry_address=NOBODY,
    runs_address=NOBODY,
    compute_address=NOBODY,
    secrets_address=NOBODY,
    inference_address=NOBODY,
    telemetry_address=NOBODY,
)


@pytest.fixture
def certificate(tmp_path: Path) -> DoorCertificate:
    """A certificate for localhost that signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    found = DoorCertificate(tmp_path / "door.pem", tmp_path / "door.key")
    found.chain.write_bytes(made.public_bytes(pem))
    found.key.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return found


@pytest.mark.parametrize("listen", ["0.0.0.0:7400", "[::]:7400", "10.0.0.7:7400", "gateway:7400"])
def test_a_door_for_others_needs_a_certificate_or_a_word(listen: str, certificate: DoorCertificate) -> None:
    assert certificate_of(SETTINGS) is None
    for settings in (replace(SETTINGS, listen=listen), replace(SETTINGS, http_listen=listen)):
        with pytest.raises(FailedPrecondition, match="in clear") as caught:
            certificate_of(settings)
        assert "STELLWERK_DOOR_CERTIFICATE" in caught.value.cure
        assert certificate_of(replace(settings, door_plaintext=True)) is None
        given = replace(settings, door_certificate=str(certificate.chain), door_key=str(certificate.key))
        assert certificate_of(given) == certificate


def test_half_a_certificate_is_refused(certificate: DoorCertificate) -> None:
    with pytest.raises(FailedPrecondition, match="cannot be used"):
        certificate_of(replace(SETTINGS, door_certificate=str(certificate.chain)))


async def test_the_grpc_door_shows_its_certificate(certificate: DoorCertificate) -> None:
    door = GrpcDoor("localhost:0", [], certificate=certificate)
    await door.start()
    credentials = grpc.ssl_channel_credentials(certificate.chain.read_bytes())
    try:
        async with grpc.aio.secure_channel(f"localhost:{door.port}", credentials) as channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=60
            )
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        async with grpc.aio.insecure_channel(f"localhost:{door.port}") as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    finally:
        await door.stop()


async def test_the_http_door_shows_its_certificate(
    certificate: DoorCertificate, backend: EchoBackend, router: Router
) -> None:
    backends = Backends(dict.fromkeys(catalog.BACKENDS, f"127.0.0.1:{backend.port}"), patience_seconds=1)
    secrets = grpc.aio.insecure_channel(f"127.0.0.1:{backend.port}")
    application = HttpDoor(backends, ConnectDoor(backends), router, LoginDoor(secrets, Seal("x"), "", ""))
    server = HttpServer("127.0.0.1:0", application, router, certificate=certificate)
    server.start()
    trusting = ssl.create_default_context(cafile=str(certificate.chain))
    try:
        async with aiohttp.ClientSession() as session:
            async with session.get(f"https://localhost:{server.port}/healthz", ssl=trusting) as response:
                assert response.status == 200
            with pytest.raises(aiohttp.ClientError):
                await session.get(f"http://localhost:{server.port}/healthz")
    finally:
        await server.stop()
        await secrets.close()
        await backends.close()
