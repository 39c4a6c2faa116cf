"""What the scorer shows to those who reach it over a network."""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import grpc

from stellwerk_platform.errors import FailedPrecondition
from stellwerk_scorer.config import Settings


@dataclass(frozen=True)
class Certificate:
    """PEM files of a certificate and of its key."""

    chain: Path
    key: Path

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """None for a scorer that answers in clear, on loopback."""
        if not settings.scorer_certificate:
            return None
        return cls(Path(settings.scorer_certificate), Path(settings.scorer_key))

    def of_http(self) -> ssl.SSLContext:
        """For the HTTP server; raises `FailedPrecondition` for files that cannot be used."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.chain, self.key)
        except OSError as error:
            raise FailedPrecondition(
                "CERTIFICATE_UNREADABLE",
                f"The certificate {self.chain} and its key {self.key} cannot be used: {error}.",
                "Set STELLWERK_SCORER_CERTIFICATE and STELLWERK_SCORER_KEY to PEM files of one pair.",
            ) from error
        return context

    def of_grpc(self) -> grpc.ServerCredentials:
        """For the gRPC server; a client needs no certificate, its token says who it is."""
        return grpc.ssl_server_credentials([(self.key.read_bytes(), self.chain.read_bytes())])
