"""`stellwerk endpoint data`: what deployments were asked and answered."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from stellwerk import names
from stellwerk.cli import output
from stellwerk.cli.arguments import PathType
from stellwerk.cli.base import Group, Session, traced
from stellwerk.cli.confirm import confirm
from stellwerk.cli.times import Moment


@click.group(cls=Group)
def data() -> None:
    """Inputs and outputs that deployments collect."""


def _chosen(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that choose files."""
    for option in (
        click.option("--until", type=Moment(), help="Hours that begin before this time."),
        click.option(
            "--since", type=Moment(), help="Hours that end after this: 10m, 2h, 3d or 2026-11-23T08:00."
        ),
        click.option(
            "--collection", default="", metavar="NAME", help="request, response, or a name of the script's."
        ),
        click.option("--deployment", default="", metavar="NAME", help="Of this deployment only."),
        click.argument("endpoint_name", metavar="ENDPOINT"),
    ):
        command = option(command)
    return command


@data.command("list", example="stellwerk endpoint data list digits --deployment blue --since 2h")
@_chosen
@click.option("--limit", type=click.IntRange(1), default=1000, show_default=True, help="At most so many.")
def data_list(session: Session, endpoint_name: str, **chosen: Any) -> None:
    """List the files of collected data. New data arrives within about a minute."""
    output.listing(
        session.workspace().collected_data.list(endpoint_name, **chosen),
        session.json,
        ("FILE", "EVENTS", "DROPPED", "SIZE", "RECORDED"),
        lambda item: (
            item.file.path,
            item.event_count,
            item.dropped_count,
            output.size(item.file.size_bytes),
            output.when(item.record_time),
        ),
    )


@data.command(
    "export", example="stellwerk endpoint data export digits --collection request --since 1d --dataset asked"
)
@_chosen
@click.option("--to", "folder", type=PathType(), help="Write the files below this folder.")
@click.option("--dataset", metavar="NAME", help="Register them as the next version of this dataset.")
@traced
def data_export(
    session: Session,
    endpoint_name: str,
    folder: Path | None,
    dataset: str | None,
    since: datetime | None,
    until: datetime | None,
    **chosen: Any,
) -> None:
    """Write collected data to a folder, or make a dataset of it."""
    collected = session.workspace().collected_data
    if dataset is not None and folder is None:
        version = collected.create_dataset(endpoint_name, dataset, since=since, until=until, **chosen)
        facts = [("dataset", names.short_version(version.name)), ("size", output.size(version.size_bytes))]
        output.facts(version, session.json, [*facts, ("files", output.files(version.files))])
        return
    if folder is None or dataset is not None:
        raise click.UsageError("Give either --to FOLDER or --dataset NAME.")
    found = collected.download(endpoint_name, folder, since=since, until=until, **chosen)
    summary = {
        "folder": str(folder),
        "files": len(found),
        "events": sum(item.event_count for item in found),
        "dropped": sum(item.dropped_count for item in found),
    }
    if session.json:
        output.document(summary)
    else:
        output.lines(summary.items())


@data.command("delete", example="stellwerk endpoint data delete digits --before 30d")
@click.argument("endpoint_name", metavar="ENDPOINT")
@click.option("--before", type=Moment(), required=True, help="Hours that ended by then: 30d or 2026-11-23.")
@click.option("--deployment", default="", metavar="NAME", help="Of this deployment only.")
@click.option("--collection", default="", metavar="NAME", help="Of this collection only.")
@click.option("--dry-run", is_flag=True, help="Only count.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@traced
def data_delete(session: Session, endpoint_name: str, dry_run: bool, yes: bool, **chosen: Any) -> None:
    """Remove collected data for good.

    Counts first, and asks. Dataset versions that were made of it stay.
    """
    collected = session.workspace().collected_data
    preview = collected.delete(endpoint_name, **chosen)
    if dry_run or not preview.file_count:
        _show_removed(session, preview, "Would remove")
        return
    if not yes:
        counted = _counted(preview)
        confirm(f"This would remove {counted} for good.", f"Remove {counted} for good?")
    _show_removed(session, collected.delete(endpoint_name, **chosen, dry_run=False), "Removed")


@data.command("retention", example="stellwerk endpoint data retention digits --days 90")
@click.argument("endpoint_name", metavar="ENDPOINT")
@click.option("--days", type=click.IntRange(0, 36_500), help="Remove what is older.  [0: keep for ever]")
@click.option("-y", "--yes", is_flag=True, help="Do not ask about data that would go at once.")
@traced
def data_retention(session: Session, endpoint_name: str, days: int | None, yes: bool) -> None:
    """Show or set how long collected data is kept.

    What is older goes within the hour, without asking.
    """
    workspace = session.workspace()
    if days is None:
        found = workspace.endpoints.get(endpoint_name).message
    else:
        if days and not yes:
            before = datetime.now(UTC) - timedelta(days=days)
            preview = workspace.collected_data.delete(endpoint_name, before=before)
            if preview.file_count:
                counted = _counted(preview)
                confirm(f"This would remove {counted} for good.", f"Remove {counted} for good, and go on so?")
        found = workspace.collected_data.set_retention(endpoint_name, days)
    facts = [("endpoint", names.last(found.name)), ("kept", retention_text(found) or "for ever")]
    output.facts(found, session.json, facts)


def retention_text(endpoint: Any) -> str:
    """How long an endpoint keeps its collected data, "" for ever."""
    return f"{endpoint.data_retention_days} days" if endpoint.data_retention_days else ""


def _counted(report: Any) -> str:
    return f"{report.file_count} files with {report.event_count} events ({output.size(report.size_bytes)})"


def _show_removed(session: Session, report: Any, verb: str) -> None:
    if session.json:
        output.document(output.to_json(report))
    else:
        click.echo(f"{verb} {_counted(report)}")


def collecting(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a deployment that say what it collects."""
    for option in (
        click.option(
            "--collect-max-bytes", type=int, default=0, metavar="N", help="Of a body.  [default: 262144]"
        ),
        click.option(
            "--collect-header",
            "collect_headers",
            multiple=True,
            metavar="NAME",
            help="Kept with requests. Repeatable.",
        ),
        click.option(
            "--collect-percent",
            type=click.FloatRange(0, 100, min_open=True),
            default=100.0,
            metavar="PERCENT",
            help="Of the requests.  [default: 100]",
        ),
        click.option(
            "--collect",
            multiple=True,
            metavar="NAME",
            help="Keep request, response, or what a Collector of the script is called. Repeatable.",
        ),
    ):
        command = option(command)
    return command


# What `collecting` adds, as parameters.
NAMES = ("collect", "collect_percent", "collect_headers", "collect_max_bytes")


def check(collect: tuple[str, ...], percent: float, headers: tuple[str, ...], max_bytes: int) -> None:
    """Refuses settings of what is not collected."""
    if not collect and (percent != 100 or headers or max_bytes):
        raise click.UsageError("Say with --collect what is to be kept.")


def settings(item: Any) -> str:
    """What a deployment collects, in words."""
    if not item.workload.HasField("data_collection"):
        return ""
    wanted = item.workload.data_collection
    return f"{', '.join(wanted.collections)} of {wanted.sampling_percent or 100:g} % of the requests"
