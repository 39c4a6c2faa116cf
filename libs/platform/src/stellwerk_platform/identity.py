"""Who this process is to the others: a certificate from Vault's PKI, renewed at half its life.

A service is called `<name>.stellwerk` in its certificate, wherever it runs. Both ends of every
connection between services show one; who is at the other end of a call says `peer_service`.
"""

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Any

import grpc
import hvac
import hvac.exceptions

from stellwerk_platform.addresses import is_forwarded
from stellwerk_platform.errors import PlatformError, Unauthenticated, Unavailable
from stellwerk_platform.settings import IdentitySettings
from stellwerk_platform.vault import Vault

log = logging.getLogger(__name__)
DOMAIN = "stellwerk"
# Has a certificate to call the gateway with, and is no service.
AGENT = "agent"
_START_PATIENCE_SECONDS = 30.0
_FIRST_RETRY_SECONDS, _LONGEST_RETRY_SECONDS = 0.5, 30.0


@dataclass(frozen=True)
class Certificate:
    """PEM of a certificate, its key, and the authorities that may have signed others'.

    `expire_time` is in seconds since 1970.
    """

    chain: bytes
    key: bytes
    authorities: bytes
    expire_time: float


class Identity:
    """The certificate of this process; `generation` counts the renewals."""

    def __init__(self, vault: Vault, name: str, certificate_seconds: float, certificate: Certificate) -> None:
        self._vault = vault
        self._name = name
        self.seconds = certificate_seconds
        self.certificate = certificate
        self.generation = 1

    @classmethod
    async def open(cls, name: str, settings: IdentitySettings) -> "Identity":
        """Logs in and gets the first certificate; waits for Vault for half a minute, then raises."""
        vault = Vault(settings.vault_url, settings.vault_role_id, settings.vault_secret_id)
        deadline = time.monotonic() + _START_PATIENCE_SECONDS
        while True:
            try:
                certificate = await _issue(vault, name, settings.certificate_seconds)
                return cls(vault, name, settings.certificate_seconds, certificate)
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(_FIRST_RETRY_SECONDS)

    async def secrets(self) -> dict[str, str]:
        """What Vault keeps for this service alone, below `secret/stellwerk/services/<name>`."""

        def read(client: hvac.Client) -> dict[str, str]:
            try:
                answer = client.adapter.get(f"/v1/secret/data/{DOMAIN}/services/{self._name}")
            except hvac.exceptions.InvalidPath:
                return {}
            return dict(answer["data"]["data"] or {})

        return await self._vault.call(read)

    async def keep(self) -> None:
        """Renews for ever; while Vault is away the certificate stays, and is tried again and again."""
        delay = _FIRST_RETRY_SECONDS
        renew_time = self._half_life()
        while True:
            await asyncio.sleep(max(0.05, renew_time - time.time()))
            try:
                self.certificate = await _issue(self._vault, self._name, self.seconds)
            except (PlatformError, hvac.exceptions.VaultError) as error:
                left = self.certificate.expire_time - time.time()
                log.warning("The certificate was not renewed and lasts %.0f s more: %s", left, error)
                renew_time = time.time() + delay
                delay = min(delay * 2, _LONGEST_RETRY_SECONDS)
                continue
            self.generation += 1
            delay, renew_time = _FIRST_RETRY_SECONDS, self._half_life()

    def _half_life(self) -> float:
        now = time.time()
        return now + max(0.0, self.certificate.expire_time - now) / 2

    def server_credentials(self) -> grpc.ServerCredentials:
        """For a server that wants a certificate of every client, and shows the newest of its own."""
        served = self.generation

        def renewed() -> "grpc.ServerCertificateConfiguration | None":
            nonlocal served
            if served == self.generation:
                return None
            served = self.generation
            return self._configuration()

        return grpc.dynamic_ssl_server_credentials(
            self._configuration(),
            renewed,  # type: ignore[arg-type]  # None says that nothing has changed
            require_client_authentication=True,
        )

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        own = self.certificate
        return grpc.ssl_server_certificate_configuration([(own.key, own.chain)], own.authorities)

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For one connection; a channel that lives longer is a `RenewedChannel`."""
        own = self.certificate
        return grpc.ssl_channel_credentials(own.authorities, own.key, own.chain)


async def _issue(vault: Vault, name: str, seconds: float) -> Certificate:
    request = {"common_name": f"{name}.{DOMAIN}", "ttl": f"{max(1, round(seconds))}s"}
    if name != AGENT:
        request |= {"alt_names": f"{name},localhost", "ip_sans": "127.0.0.1"}

    def issue(client: hvac.Client) -> Certificate:
        answer = client.adapter.post(f"/v1/pki/issue/{name}", json=request)["data"]
        return Certificate(
            chain=str(answer["certificate"]).encode(),
            key=str(answer["private_key"]).encode(),
            authorities=_authorities(client),
            expire_time=float(answer["expiration"]),
        )

    return await vault.call(issue)


def _authorities(client: hvac.Client) -> bytes:
    """All issuers of the mount: while one replaces the other, both are good."""
    found: list[str] = client.adapter.list("/v1/pki/issuers")["data"]["keys"]
    answers: list[Any] = [client.adapter.get(f"/v1/pki/issuer/{issuer}/json") for issuer in found]
    return "\n".join(str(answer["data"]["certificate"]).strip() for answer in answers).encode() + b"\n"


def is_encrypted(context: Any) -> bool:
    """Whether a call came over TLS: always, but for single parts in tests."""
    return bool(context.auth_context().get("transport_security_type", [b""])[0] == b"ssl")


def peer_service(context: Any) -> str:
    """The name in the caller's certificate (`registry`, `agent`, `launcher`), empty without one."""
    names: list[bytes] = context.auth_context().get("x509_common_name", [])
    name, _, domain = names[0].decode(errors="replace").partition(".") if names else ("", "", "")
    return name if domain == DOMAIN else ""


def check_peer(context: Any, subject: str, role: str) -> None:
    """Raises `Unauthenticated` for a caller whose token and certificate do not belong together.

    A stolen token of a service is worth nothing without that service's certificate, and an agent's
    certificate opens the gateway's door for agents only. What the gateway forwards comes with its
    certificate, so no service's token is good there, its own neither.
    """
    if not is_encrypted(context):
        return
    peer = peer_service(context)
    proven = subject == f"services/{peer}" and not is_forwarded(context)
    if peer == AGENT or (role == "Service" and not proven):
        raise Unauthenticated(
            "CERTIFICATE_MISMATCH",
            f"The token of {subject} came with the certificate of {peer or 'nobody'}.",
            "A service's token is good with that service's certificate; agents call the gateway.",
        )
