"""Whether people's doors may be opened as they are told to: in clear only where nobody can listen in."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path

import grpc

from stellwerk_gateway.config import Settings
from stellwerk_platform.errors import FailedPrecondition


@dataclass(frozen=True)
class DoorCertificate:
    """PEM files of the certificate that people's clients see, and of its key."""

    chain: Path
    key: Path

    def server_credentials(self) -> grpc.ServerCredentials:
        """For the gRPC door; a client needs no certificate, its key says who it is."""
        return grpc.ssl_server_credentials([(self.key.read_bytes(), self.chain.read_bytes())])


def certificate_of(settings: Settings) -> DoorCertificate | None:
    """The certificate of both doors, None for doors in clear.

    Raises `FailedPrecondition` for a door in clear that others than this machine reach, unless
    the settings say that it is meant (an ingress in front ends TLS).
    """
    if settings.door_certificate or settings.door_key:
        return _readable(DoorCertificate(Path(settings.door_certificate), Path(settings.door_key)))
    open_doors = [listen for listen in (settings.listen, settings.http_listen) if not is_loopback(listen)]
    if open_doors and not settings.door_plaintext:
        raise FailedPrecondition(
            "DOOR_WITHOUT_CERTIFICATE",
            f"Keys would travel in clear through {' and '.join(open_doors)}.",
            "Set STELLWERK_DOOR_CERTIFICATE and STELLWERK_DOOR_KEY to PEM files, listen on 127.0.0.1, or set "
            "STELLWERK_DOOR_PLAINTEXT=1 behind an ingress that ends TLS.",
        )
    return None


def is_loopback(listen: str) -> bool:
    """Whether only this machine reaches a `host:port`."""
    host = listen.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _readable(certificate: DoorCertificate) -> DoorCertificate:
    for path in (certificate.chain, certificate.key):
        try:
            path.read_bytes()
        except OSError as error:
            raise FailedPrecondition(
                "DOOR_CERTIFICATE_UNREADABLE",
                f"The certificate of the doors cannot be used: {path}: {error.strerror}.",
                "Set STELLWERK_DOOR_CERTIFICATE and STELLWERK_DOOR_KEY to PEM files that it may read.",
            ) from error
    return certificate
