"""Rules of quotas."""

from stellwerk_platform.documents import now
from stellwerk_platform.errors import InvalidArgument
from stellwerk_platform.journal import Fact
from stellwerk_protos.registry.v1.quotas_pb2 import Limits, Quota

# 8 EiB; a sum of two stays a 64-bit number.
_LARGEST = 2**62
_FIELDS = ("nodes", "cores", "storage_bytes", "cpu_seconds")


def check_limits(limits: Limits) -> None:
    """Raises `InvalidArgument` for a negative or absurd limit."""
    for field in _FIELDS:
        value = int(getattr(limits, field))
        if not 0 <= value <= _LARGEST:
            raise InvalidArgument(
                "INVALID_LIMIT", f"{field} is {value}.", "Use a number from 1, or 0 for no limit."
            )


def set_limits(quota: Quota, limits: Limits, cpu_seconds_before: int | None) -> Fact | None:
    """Takes over the limits; with `cpu_seconds_before` the budget begins anew. None: nothing changes."""
    if quota.limits == limits and cpu_seconds_before is None and quota.revision:
        return None
    quota.limits.CopyFrom(limits)
    if cpu_seconds_before is not None:
        quota.cpu_seconds_before = cpu_seconds_before
        quota.budget_time.CopyFrom(now())
    shown = ", ".join(f"{f}={getattr(limits, f)}" for f in _FIELDS if getattr(limits, f)) or "none"
    return Fact("set", "REQUESTED", f"Limits: {shown}.")
