"""The settings of compute; docs/interfaces.md."""

from dataclasses import dataclass

from stellwerk_platform.settings import ServiceSettings


@dataclass(frozen=True, kw_only=True)
class Settings(ServiceSettings):
    """`lease_seconds`: how long a node may be silent."""

    lease_seconds: float = 30.0
