"""The service's settings, read once from the environment; docs/interfaces.md, "Variables"."""

from dataclasses import dataclass

from stellwerk_platform.settings import ServiceSettings, SettingsError

_MOST_CHECKS = 32


@dataclass(frozen=True, kw_only=True)
class InferenceSettings(ServiceSettings):
    """Addresses as `host:port`."""

    runs_address: str
    compute_address: str
    # From the start of a scoring server until it must be ready: `init` may load a large model.
    replica_ready_seconds: float = 300.0
    # How long a blob that nothing uses any more stays, as in the registry.
    blob_grace_seconds: float = 3600.0
    # Checks of monitors that this process makes at a time; each may take 1 GiB of memory.
    monitor_checks: int = 3

    def __post_init__(self) -> None:
        if not 1 <= self.monitor_checks <= _MOST_CHECKS:
            raise SettingsError(f"STELLWERK_MONITOR_CHECKS={self.monitor_checks} is not 1 to {_MOST_CHECKS}")
