"""Configuration of the runs service."""

from dataclasses import dataclass

from stellwerk_platform.settings import ServiceSettings


@dataclass(frozen=True, kw_only=True)
class RunsSettings(ServiceSettings):
    """Whom CreateRun asks, and how much may wait to be stored.

    `stream_bytes` bounds the streams METRICS, LOGS and RECORDS, each; past it appends are
    refused until the writer has caught up, and the sender keeps its file.
    `blob_grace_seconds`: how long what nothing uses any more stays, as in the registry.
    `lease_seconds`: how long an interactive run may be silent.
    """

    compute_address: str
    stream_bytes: int = 512 * 1024 * 1024
    lease_seconds: float = 30.0
    blob_grace_seconds: float = 3600.0
