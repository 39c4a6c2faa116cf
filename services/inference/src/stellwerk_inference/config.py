"""The service's settings, read once from the environment; docs/interfaces.md, "Variables"."""

from dataclasses import dataclass

from stellwerk_platform.settings import ServiceSettings


@dataclass(frozen=True, kw_only=True)
class InferenceSettings(ServiceSettings):
    """Addresses as `host:port`."""

    runs_address: str
    compute_address: str
    # From the start of a scoring server until it must be ready: `init` may load a large model.
    replica_ready_seconds: float = 300.0
    # How long a blob that nothing uses any more stays, as in the registry.
    blob_grace_seconds: float = 3600.0
