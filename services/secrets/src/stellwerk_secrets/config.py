"""What `secrets` reads from the environment (docs/interfaces.md)."""

import re
from dataclasses import dataclass

from stellwerk_platform.settings import SettingsError, StoreSettings

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class SecretsSettings(StoreSettings):
    """There is nobody to log in to: `secrets` is whom the others ask.

    The digests are those of the two API keys that exist from the start; an empty one
    means that there is no such key.
    """

    vault_url: str
    owner_key_sha256: str
    otlp_key_sha256: str = ""

    def __post_init__(self) -> None:
        for variable in ("owner_key_sha256", "otlp_key_sha256"):
            value = getattr(self, variable)
            if value and not _SHA256.fullmatch(value):
                raise SettingsError(
                    f"STELLWERK_{variable.upper()} is not a SHA-256 in 64 lower-case hexadecimal digits"
                )
