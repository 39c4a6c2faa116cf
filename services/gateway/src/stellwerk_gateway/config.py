"""The gateway's settings, read once from the environment; docs/interfaces.md, "Variables"."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

from stellwerk_platform.settings import BusSettings


@dataclass(frozen=True, kw_only=True)
class Settings(BusSettings):
    """Addresses as `host:port`, sizes in bytes, times in seconds."""

    http_listen: str = "127.0.0.1:0"
    registry_address: str
    runs_address: str
    compute_address: str
    secrets_address: str
    inference_address: str
    telemetry_address: str
    # Addresses of proxies, with commas between them, whose X-Forwarded-For is believed.
    trusted_proxies: str = ""
    # Of the client with which browsers sign in; a public client has none.
    oidc_client_secret: str = ""
    # https://host[:port] under which browsers see the HTTP door; else what they ask for.
    public_url: str = ""
    # PEM files of a certificate for both doors of people, which else are in clear on loopback only.
    door_certificate: str = ""
    door_key: str = ""
    # They are in clear elsewhere too: something in front of them ends TLS.
    door_plaintext: bool = False
    # The door for agents, which wants their certificates; empty where there is none.
    agent_listen: str = ""
    # A little more than the scorer's own time-out, so that its error is the one that is seen.
    scoring_timeout_seconds: float = 65.0
    scoring_max_body_bytes: int = 100_000_000
    # Bodies that wait for a replica, all together.
    scoring_held_bytes: int = 256_000_000
    # How long a request waits for a replica when none is fit.
    scoring_park_seconds: float = 30.0
    # Requests that are recorded although their callers' traces are not.
    scoring_traces_per_second: float = 10.0

    def completed(self, kept: Mapping[str, str]) -> Self:
        """The secret of the OpenID client may lie in Vault too."""
        secret = self.oidc_client_secret or str(kept.get("oidc_client_secret", ""))
        return replace(super().completed(kept), oidc_client_secret=secret)

    def backends(self) -> dict[str, str]:
        """Address by service name."""
        return {
            "registry": self.registry_address,
            "runs": self.runs_address,
            "compute": self.compute_address,
            "secrets": self.secrets_address,
            "inference": self.inference_address,
            "telemetry": self.telemetry_address,
        }
