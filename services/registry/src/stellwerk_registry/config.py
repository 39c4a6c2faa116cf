"""Configuration of the registry."""

from dataclasses import dataclass

from stellwerk_platform.settings import ServiceSettings, kept_in_vault


@dataclass(frozen=True, kw_only=True)
class RegistrySettings(ServiceSettings):
    """Where blobs lie, how long unused ones stay, and the others: each keeps something of a workspace."""

    # It asks itself nothing.
    registry_address: str = ""
    runs_address: str
    compute_address: str
    inference_address: str
    telemetry_address: str
    s3_url: str = kept_in_vault()
    s3_access_key: str = kept_in_vault()
    s3_secret_key: str = kept_in_vault()
    blob_grace_seconds: float = 3600.0
    # Blobs of more than four of these travel in parts of this size. S3 takes no less than 5 MiB.
    blob_part_bytes: int = 64 * 1024 * 1024
    # How long what lives in a workspace that is deleted may take to end.
    workspace_end_seconds: float = 120.0
