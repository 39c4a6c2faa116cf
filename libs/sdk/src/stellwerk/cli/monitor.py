"""`stellwerk monitor`: what an endpoint is asked or answers, against what it was trained on."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import click

from stellwerk import names
from stellwerk.cli import arguments, errors, monitor_view, output
from stellwerk.cli.base import Group, Session, traced
from stellwerk.cli.confirm import confirm
from stellwerk.cli.times import Length, Moment

_NAME = click.argument("name", metavar="MONITOR")


@click.group(cls=Group)
def monitor() -> None:
    """Drift of what an endpoint is asked or answers.

    On a schedule, the data that a deployment collects is compared with the data that its model was
    trained on. A monitor that finds drift says so in its state and as an event; docs/monitors.md has more.
    """


def _settings(*, new: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options of a monitor; what is to be created has defaults, what is to be changed has none."""

    def default(value: str) -> str:
        return f"  [default: {value}]" if new else ""

    options = (
        click.option(
            "--baseline",
            required=new,
            metavar="DATASET[:VERSION]",
            help="What the model was trained on: CSV, Parquet, JSON lines or NumPy files.",
        ),
        click.option("--baseline-path", metavar="PATH", help=f"File or folder in it.{default('all of it')}"),
        click.option(
            "--collection", metavar="NAME", help=f"request, response, or the script's.{default('request')}"
        ),
        click.option("--deployment", metavar="NAME", help=f"Of this one only.{default('all')}"),
        click.option("--columns", metavar="A,B", help=f"Compare these.{default('those that both have')}"),
        click.option(
            "--threshold",
            "thresholds",
            multiple=True,
            metavar="[COLUMN:]METRIC=VALUE",
            help="Drift is over VALUE; psi, jensen-shannon, ks or chi-square. Repeatable."
            + default("psi=0.2"),
        ),
        click.option("--cron", metavar='"M H D M W"', help=f"When to check.{default('0 6 * * *')}"),
        click.option("--time-zone", metavar="ZONE", help=f"Of --cron: Europe/Berlin.{default('UTC')}"),
        click.option("--window", type=Length(), help=f"How far back a check looks: 12h, 7d.{default('1d')}"),
        click.option(
            "--min-rows", type=click.IntRange(1), help=f"Fewer are too few to compare.{default('100')}"
        ),
        click.option(
            "--max-rows",
            type=click.IntRange(1),
            help=f"Draw so many of more, on either side.{default('100000')}",
        ),
        click.option("--description", help="Free text."),
        click.option("--tag", "tags", multiple=True, metavar="NAME=VALUE", help="Repeatable."),
    )

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    """What was said of `_settings`, as the SDK takes it."""
    given = {name: value for name, value in settings.items() if value is not None and value != ()}
    if "columns" in given:
        given["columns"] = [part.strip() for part in given["columns"].split(",") if part.strip()]
    if "tags" in given:
        given["tags"] = arguments.pairs(given["tags"], "--tag")
    if "thresholds" in given:
        given["thresholds"] = dict(map(_threshold, given["thresholds"]))
    return given


def _threshold(text: str) -> tuple[str, float]:
    """`age:ks=0.1`; the value is behind the last sign, as a column's name may have any."""
    key, _, value = text.rpartition("=")
    try:
        return key, float(value)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is not of the form METRIC=VALUE or COLUMN:METRIC=VALUE.", param_hint="--threshold"
        ) from None


@monitor.command(
    "create",
    example="stellwerk monitor create digits-drift --endpoint digits --baseline digits:1 "
    '--cron "0 6 * * *" --time-zone Europe/Berlin --threshold psi=0.2 --threshold age:ks=0.1',
)
@_NAME
@click.option("--endpoint", required=True, metavar="NAME", help="The endpoint.")
@_settings(new=True)
@click.option("--paused", is_flag=True, help="Let the schedule rest at first.")
@click.option("--dry-run", is_flag=True, help="Only show what would be created, and the next checks.")
@traced
def create(session: Session, name: str, endpoint: str, paused: bool, dry_run: bool, **settings: Any) -> None:
    """Watch an endpoint for drift.

    Its deployments must collect data (`deployment create --collect`). Metrics: psi is the population
    stability index, jensen-shannon the distance of that name, ks the Kolmogorov-Smirnov statistic (numbers),
    chi-square Cramér's V (categories).
    """
    made = session.workspace().monitors.create(
        name, endpoint=endpoint, paused=paused, dry_run=dry_run, **_given(settings)
    )
    monitor_view.show(session, made)
    if dry_run:
        click.echo("Nothing was created.", err=True)
    else:
        click.echo(f"Check it now: stellwerk monitor check {name}", err=True)


@monitor.command("list", example="stellwerk monitor list --endpoint digits")
@click.option("--endpoint", default="", metavar="NAME", help="Of this endpoint only.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="At most so many.")
def list_(session: Session, endpoint: str, limit: int) -> None:
    """List monitors, and what their last checks found."""
    from stellwerk import states

    output.listing(
        session.workspace().monitors.list(endpoint=endpoint, limit=limit),
        session.json,
        ("MONITOR", "STATE", "ENDPOINT", "COLLECTION", "BASELINE", "NEXT CHECK", "REASON"),
        lambda item: (
            names.last(item.name),
            states.monitor(item.state),
            names.last(item.endpoint),
            item.collection,
            names.short_version(item.baseline),
            monitor_view.next_check(item),
            output.reason_line(item.reason),
        ),
    )


@monitor.command("show", example="stellwerk monitor show digits-drift --column age")
@_NAME
@click.option("--check", "number", metavar="NUMBER", help="That check instead of the monitor; or: latest.")
@click.option("--column", default="", metavar="COLUMN", help="The values of one column, bin by bin.")
@click.option("--all", "every", is_flag=True, help="Show the columns that have not drifted, too.")
def show(session: Session, name: str, number: str | None, column: str, every: bool) -> None:
    """Show a monitor and what its last check found, column by column."""
    monitors = session.workspace().monitors
    if number is None:
        found = monitors.get(name)
        monitor_view.show(session, found)
        if session.json or not found.last_check:
            return
        click.echo()
    check = monitors.get_check(name, number or names.last(found.last_check))
    if column:
        monitor_view.show_column(session, check, column)
    else:
        monitor_view.show_check(session, check, every=every)


@monitor.command("update", example='stellwerk monitor update digits-drift --window 7d --cron "0 6 * * 1"')
@_NAME
@_settings(new=False)
@traced
def update(session: Session, name: str, **settings: Any) -> None:
    """Change a monitor.

    Thresholds, columns and tags take the place of all that there are.
    """
    given = _given(settings)
    if not given:
        raise click.UsageError("Nothing to change is given.")
    monitor_view.show(session, session.workspace().monitors.update(name, **given))


@monitor.command("pause", example="stellwerk monitor pause digits-drift")
@_NAME
@traced
def pause(session: Session, name: str) -> None:
    """Let the schedule rest.

    `monitor check` still checks.
    """
    monitor_view.show(session, session.workspace().monitors.pause(name))


@monitor.command("resume", example="stellwerk monitor resume digits-drift")
@_NAME
@traced
def resume(session: Session, name: str) -> None:
    """Go on with the next time of the schedule."""
    monitor_view.show(session, session.workspace().monitors.resume(name))


@monitor.command("check", example="stellwerk monitor check digits-drift --fail-on-drift")
@_NAME
@click.option("--until", type=Moment(), help="The data ends here: 2h, or a date.  [default: now]")
@click.option("--wait/--no-wait", default=True, help="Wait for what it finds (the default).")
@click.option("--fail-on-drift", is_flag=True, help="Exit with 6 when it has drifted.")
@traced
def check(session: Session, name: str, until: datetime | None, wait: bool, fail_on_drift: bool) -> int:
    """Check now, beside the schedule.

    Looks at the window that ends at --until. A check that cannot be made exits with 1.
    """
    from stellwerk import states

    if fail_on_drift and not wait:
        raise click.UsageError("Only with --wait is it known whether it has drifted.")
    monitors = session.workspace().monitors
    begun = monitors.check(name, until=until)
    ended = monitors.wait_check(begun) if wait else begun
    monitor_view.show_check(session, ended)
    if states.monitor_check(ended) == "Failed":
        return errors.FAILED
    return errors.DRIFTED if fail_on_drift and states.monitor(ended.found) == "Drifted" else 0


@monitor.command("checks", example="stellwerk monitor checks digits-drift --limit 20")
@_NAME
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="At most so many.")
def checks(session: Session, name: str, limit: int) -> None:
    """List the checks of a monitor, newest first."""
    output.listing(
        session.workspace().monitors.checks(name, limit=limit),
        session.json,
        ("CHECK", "FOUND", "BEGUN", "DATA FROM", "TO", "ROWS", "REASON"),
        lambda item: (
            names.last(item.name),
            monitor_view.outcome(item),
            output.when(item.create_time),
            output.when(item.window_start_time),
            output.when(item.window_end_time),
            item.row_count,
            output.reason_line(item.reason),
        ),
    )


@monitor.command("delete", example="stellwerk monitor delete digits-drift")
@_NAME
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@traced
def delete(session: Session, name: str, yes: bool) -> None:
    """Delete a monitor and its checks.

    The collected data stays.
    """
    monitors = session.workspace().monitors
    if not yes:
        text = f"{name} goes for good, and so do its checks ({monitors.get(name).check_count})."
        confirm(text, f"{text} Delete it?")
    monitor_view.show(session, monitors.delete(name))
