"""What `secrets` reads from the environment (docs/interfaces.md)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self
from urllib.parse import urlsplit

from stellwerk_platform.settings import SettingsError, StoreSettings

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class SecretsSettings(StoreSettings):
    """There is nobody to log in to: `secrets` is whom the others ask.

    The digests are those of the two API keys that exist from the start; an empty one
    means that there is no such key.
    """

    owner_key_sha256: str
    otlp_key_sha256: str = ""
    # An empty issuer means that nobody signs in by OpenID Connect.
    oidc_issuer: str = ""
    oidc_client_id: str = ""
    oidc_device_client_id: str = ""
    oidc_scopes: str = "openid email profile"
    # Domains, separated by spaces or commas, whose verified addresses become people at their first login.
    oidc_create_users: str = ""
    session_seconds: int = 7 * 24 * 60 * 60
    # Seed of the NATS account key that the server's auth callout trusts; "" lets no subscribers in.
    nats_callout_seed: str = ""
    # Where subscribers find NATS, if not where this service does.
    subscriber_nats_url: str = ""

    def completed(self, kept: Mapping[str, str]) -> Self:
        """The seed of the callout too is of the NATS that Vault knows of."""
        seed = self.nats_callout_seed or ("" if self.nats_url else str(kept.get("nats_callout_seed", "")))
        return replace(super().completed(kept), nats_callout_seed=seed)

    def __post_init__(self) -> None:
        for variable in ("owner_key_sha256", "otlp_key_sha256"):
            value = getattr(self, variable)
            if value and not _SHA256.fullmatch(value):
                raise SettingsError(
                    f"STELLWERK_{variable.upper()} is not a SHA-256 in 64 lower-case hexadecimal digits"
                )
        if self.oidc_issuer and not (self.oidc_client_id or self.oidc_device_client_id):
            raise SettingsError("STELLWERK_OIDC_ISSUER is set, but no STELLWERK_OIDC_CLIENT_ID")
        if self.oidc_issuer and not (
            self.oidc_issuer.startswith("https://") or is_loopback(self.oidc_issuer)
        ):
            raise SettingsError("STELLWERK_OIDC_ISSUER is not an https:// URL")


def is_loopback(url: str) -> bool:
    """Whether a URL leads to this machine."""
    return urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
