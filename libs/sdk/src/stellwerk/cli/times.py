"""Times as people write them: `10m` ago, a date and time, or a length such as `12h`."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import click

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_LENGTH = re.compile(r"(\d{1,6})([smhdw])")


def parse(text: str) -> datetime | None:
    """The moment, or None for what is none; a time without a zone is local."""
    if match := _LENGTH.fullmatch(text):
        return datetime.now(UTC) - _length(match)
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _length(match: re.Match[str]) -> timedelta:
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


class Moment(click.ParamType[datetime]):
    """`10m`, `2h`, `3d`, or `2026-11-23T08:00`; `later` turns `3d` into three days from now."""

    name = "time"

    def __init__(self, *, later: bool = False) -> None:
        self._later = later

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        moment = value if isinstance(value, datetime) else parse(str(value))
        if moment is None:
            self.fail(f"{value!r} is no time: write 10m, 2h, 3d or 2026-11-23T08:00.", param, ctx)
        if self._later and _LENGTH.fullmatch(str(value)):
            now = datetime.now(UTC)
            return now + (now - moment)
        return moment


class Length(click.ParamType[timedelta]):
    """A length of time: `30m`, `12h`, `7d`."""

    name = "length"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if isinstance(value, timedelta):
            return value
        match = _LENGTH.fullmatch(str(value))
        if match is None:
            self.fail(f"{value!r} is no length of time: write 30m, 12h or 7d.", param, ctx)
        return _length(match)


class Start(click.ParamType[int | datetime]):
    """A sequence of the journal, or a moment."""

    name = "time|seq"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | datetime:
        if isinstance(value, int | datetime):
            return value
        if str(value).isdecimal() and len(str(value)) < 19:
            return int(value)
        moment = parse(str(value))
        if moment is None:
            self.fail(
                f"{value!r} is neither a sequence nor a time: write 4711, 10m, 2h or a date.", param, ctx
            )
        return moment
