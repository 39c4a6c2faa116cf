"""When a schedule is due: cron in a time zone. Around changes of the clock as Debian's cron has it."""

from collections.abc import Iterator
from datetime import UTC, datetime, tzinfo
from itertools import islice
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from stellwerk_platform.errors import InvalidArgument

_FIELDS = 5
_CRON_LENGTH, _ZONE_LENGTH = 200, 64


def check(cron: str, time_zone: str) -> None:
    """Raises `InvalidArgument` for what is never due; an empty `cron` is no schedule."""
    _zone(time_zone)
    if not cron:
        return
    cure = "Use five fields: minute, hour, day of the month, month, day of the week, like '0 6 * * *'."
    if len(cron) > _CRON_LENGTH or len(cron.split()) != _FIELDS:
        raise InvalidArgument("INVALID_CRON", f"{cron[:80]!r} does not have {_FIELDS} fields.", cure)
    try:
        first = next(_times(cron, time_zone, datetime.now(UTC)), None)
    # The library checks its input by assertions and conversions too.
    except (CronSimError, ValueError, AssertionError, TypeError) as error:
        detail = f": {error}" if isinstance(error, CronSimError) else ""
        raise InvalidArgument("INVALID_CRON", f"{cron!r} is no schedule{detail}.", cure) from None
    if first is None:
        raise InvalidArgument("INVALID_CRON", f"{cron!r} is never due.", "Name a date that there is.")


def upcoming(cron: str, time_zone: str, after: datetime, count: int = 1) -> list[datetime]:
    """The next times, in UTC, for a schedule that was checked; none without one."""
    return list(islice(_times(cron, time_zone, after), count)) if cron else []


def _times(cron: str, time_zone: str, after: datetime) -> Iterator[datetime]:
    last = after
    for moment in CronSim(cron, after.astimezone(_zone(time_zone))):
        due = moment.astimezone(UTC)
        # In the hour that comes twice, the wall clock alone would go back.
        if due > last:
            last = due
            yield due


def _zone(name: str) -> tzinfo:
    if name in ("", "UTC"):
        return UTC
    try:
        if len(name) <= _ZONE_LENGTH:
            return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        pass
    raise InvalidArgument(
        "INVALID_TIME_ZONE",
        f"{name[:_ZONE_LENGTH]!r} is no time zone.",
        "Use an IANA name like Europe/Berlin.",
    )
