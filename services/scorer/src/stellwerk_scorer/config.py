"""The scorer's settings, read once from the environment; docs/interfaces.md, "A replica"."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from stellwerk_platform.settings import Settings as PlatformSettings

# Azure's name for the time-out; scripts and templates that move here set it.
_AZURE_TIMEOUT = "SCORING_TIMEOUT_MS"


@dataclass(frozen=True, kw_only=True)
class Settings(PlatformSettings):
    """`STELLWERK_SCORER_…`; sizes in bytes, times in the unit that the name ends with."""

    scorer_http_listen: str
    scorer_grpc_listen: str
    scorer_python: str
    scorer_script: str
    secrets_address: str
    # Whose token opens this replica; empty takes that of any endpoint.
    scorer_endpoint: str = ""
    scorer_model_name: str = "model"
    scorer_model_version: str = ""
    scorer_timeout_ms: int = 60_000
    scorer_max_body_bytes: int = 100_000_000
    scorer_drain_seconds: int = 20

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Reads the fields, the time-out also from Azure's `SCORING_TIMEOUT_MS`."""
        if _AZURE_TIMEOUT in environment:
            environment = {"STELLWERK_SCORER_TIMEOUT_MS": environment[_AZURE_TIMEOUT], **environment}
        return super().from_environment(environment)
