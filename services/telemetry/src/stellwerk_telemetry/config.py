"""What `telemetry` reads from the environment (docs/interfaces.md)."""

from dataclasses import dataclass

from stellwerk_platform.settings import ServiceSettings


@dataclass(frozen=True, kw_only=True)
class TelemetrySettings(ServiceSettings):
    """`trace_days`: how long spans are kept; `activity_days`: how long what was refused."""

    trace_days: float = 3.0
    activity_days: float = 365.0
