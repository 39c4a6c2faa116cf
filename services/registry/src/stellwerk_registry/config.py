"""Configuration of the registry."""

from dataclasses import dataclass

from stellwerk_platform.settings import ServiceSettings


@dataclass(frozen=True, kw_only=True)
class RegistrySettings(ServiceSettings):
    """Where blobs lie, how long unused ones stay, and who knows what a run produced."""

    runs_address: str
    s3_url: str
    s3_access_key: str
    s3_secret_key: str
    blob_grace_seconds: float = 3600.0
