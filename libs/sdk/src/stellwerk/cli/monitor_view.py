"""Monitors and checks as people read them."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from stellwerk import names
from stellwerk.cli import output
from stellwerk.cli.base import Session
from stellwerk.errors import invalid

if TYPE_CHECKING:
    from stellwerk_protos.inference.v1.monitors_pb2 import ColumnDrift, Monitor, MonitorCheck

# Columns shown unless all are asked for.
_ROWS = 20
# The threshold stands in the middle of a bar.
_HALF = 10
_SHARE_WIDTH = 30
# Names that fit into a line.
_NAMES = 8
_HEADER = ("COLUMN", "METRIC", "VALUE", "THRESHOLD", "", "P", "MISSING", "")


def show(session: Session, found: "Monitor") -> None:
    """A monitor."""
    from stellwerk import drift, states

    facts = [
        ("name", found.name),
        ("state", states.monitor(found.state)),
        ("reason", output.reason(found.reason)),
        ("cure", found.reason.cure),
        ("endpoint", "/".join(filter(None, (names.last(found.endpoint), found.deployment)))),
        ("collection", found.collection),
        ("baseline", " ".join(filter(None, (names.short_version(found.baseline), found.baseline_path)))),
        ("columns", _listed(found.columns)),
        ("drift is", drift.described(found.thresholds)),
        ("schedule", f"{found.cron} {found.time_zone}" if found.cron else "none: only when asked"),
        ("window", _length(found.window.seconds)),
        ("rows", _bounds(found)),
        ("next checks", _next_checks(found)),
        ("checks", found.check_count),
        ("description", found.description),
        ("tags", output.pairs(found.tags)),
        ("created", _created(found)),
    ]
    output.facts(found, session.json, facts)


def next_check(found: "Monitor") -> str:
    """When it is due, or that it rests."""
    return "paused" if found.paused else output.when(found.next_check_time)


def _next_checks(found: "Monitor") -> str:
    return "\n".join(map(output.when, found.upcoming_check_times)) or next_check(found)


def outcome(check: "MonitorCheck") -> str:
    """What a check found; where it is until then."""
    from stellwerk import states

    return states.monitor(check.found) or states.monitor_check(check)


def show_check(session: Session, check: "MonitorCheck", *, every: bool = False) -> None:
    """A check and its columns: those that have drifted and some more, or all."""
    unreadable = f"{check.unreadable_count:,} events hold no rows" if check.unreadable_count else ""
    facts = [
        ("check", names.last(check.name)),
        ("found", outcome(check)),
        ("reason", output.reason(check.reason)),
        ("cure", check.reason.cure),
        ("window", f"{output.when(check.window_start_time)} to {output.when(check.window_end_time)}"),
        ("rows", f"{check.row_count:,} collected, {check.baseline_row_count:,} of the baseline"),
        ("unreadable", unreadable),
    ]
    output.facts(check, session.json, facts)
    if session.json or not check.columns:
        return
    drifted = sum(item.drifted for item in check.columns)
    shown = check.columns if every else check.columns[: max(drifted, _ROWS)]
    click.echo()
    _table(shown)
    if left := len(check.columns) - len(shown):
        name = check.name.split("/")[3]
        click.echo(f"{left} more have not drifted; see `stellwerk monitor show {name} --all`.", err=True)


def _table(items: "Sequence[ColumnDrift]") -> None:
    """A row each; what none of them has is no column."""
    rows = [_row(item) for item in items]
    used = [place for place in range(len(_HEADER)) if any(row[place] for row in rows)]
    output.table([_HEADER[place] for place in used], [[row[place] for place in used] for row in rows])


def _row(item: "ColumnDrift") -> Sequence[object]:
    from stellwerk import drift

    missing = (item.baseline_missing_share, item.missing_share)
    return (
        item.column,
        drift.metric_word(item.metric),
        f"{item.value:.4f}",
        f"{item.threshold:g}",
        _bar(item.value, item.threshold),
        f"{item.p_value:.3g}" if item.HasField("p_value") else "",
        f"{missing[0]:.1%} -> {missing[1]:.1%}" if any(missing) else "",
        "drifted" if item.drifted else "",
    )


def _bar(value: float, threshold: float) -> str:
    """The value as a length, with a mark where drift begins."""
    full = min(2 * _HALF, round(value / threshold * _HALF)) if threshold > 0 else 0
    cells = "█" * full + " " * (2 * _HALF - full)
    return f"{cells[:_HALF]}|{cells[_HALF:]}"


def show_column(session: Session, check: "MonitorCheck", column: str) -> None:
    """How one column is distributed on either side; raises `StellwerkError` for one that was not compared."""
    found = [item for item in check.columns if item.column == column]
    if not found:
        there = ", ".join(dict.fromkeys(item.column for item in check.columns)) or "none"
        raise invalid(
            "COLUMN_NOT_COMPARED",
            f"Check {names.last(check.name)} compared no column {column!r}.",
            f"It compared: {there}.",
        )
    if session.json:
        output.document([output.to_json(item) for item in found])
        return
    _table(found)
    binned: Any = next((item for item in found if item.bins), None)
    if binned is not None:
        click.echo()
        output.table(("VALUES", "BASELINE", "", "COLLECTED", ""), [*_shares(binned)])


def _shares(item: "ColumnDrift") -> Iterator[Sequence[object]]:
    """One row a bin."""
    for label, before, after in zip(item.bins, item.baseline_shares, item.shares, strict=False):
        yield label, f"{before:.1%}", _share_bar(before), f"{after:.1%}", _share_bar(after)


def _share_bar(share: float) -> str:
    return "█" * round(share * _SHARE_WIDTH)


def _created(found: "Monitor") -> str:
    """Nothing for what would be created."""
    return f"{output.when(found.create_time)} by {found.creator}" if found.HasField("create_time") else ""


def _listed(columns: Sequence[str]) -> str:
    more = f", … ({len(columns)})" if len(columns) > _NAMES else ""
    return ", ".join(columns[:_NAMES]) + more


def _bounds(found: "Monitor") -> str:
    parts = (
        f"at least {found.min_rows:,}" if found.min_rows else "",
        f"at most {found.max_rows:,}" if found.max_rows else "",
    )
    return ", ".join(filter(None, parts))


def _length(seconds: int) -> str:
    """86400 -> 1d"""
    for unit, unit_seconds in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds and seconds % unit_seconds == 0:
            return f"{seconds // unit_seconds}{unit}"
    return f"{seconds}s" if seconds else ""
