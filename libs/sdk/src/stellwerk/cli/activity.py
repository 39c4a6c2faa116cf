"""`stellwerk activity`: who did or tried what."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stellwerk.cli import output
from stellwerk.cli.arguments import PathType
from stellwerk.cli.base import Group, Session
from stellwerk.cli.times import Moment

if TYPE_CHECKING:
    from stellwerk._sync.activities import Activities

_COMMON = ("workspace", "grpc_address", "gateway_url", "api_key_file", "data_dir", "debug")


def _selection(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which activities are wanted."""
    for option in (
        click.option("--until", type=Moment(), help="Before this time."),
        click.option("--since", type=Moment(), help="From this time on: 10m, 2h, 3d or 2026-11-23T08:00."),
        click.option(
            "--result", type=click.Choice(["done", "denied"]), default=None, help="What came of it."
        ),
        click.option("--resource", default="", help="This resource and what lies below it: runs/RUN."),
        click.option("--action", default="", help="Text in the action: CreateRun, run.created."),
        click.option("--actor", default="", help="Who: users/ada, services/runs."),
        click.option("--platform", is_flag=True, help="What lies in no workspace (for administrators)."),
    ):
        command = option(command)
    return command


@click.group(cls=Group)
def activity() -> None:
    """Who did or tried what, when, from where, with what result.

    What changed something comes from the journal; refused attempts and secrets that were read are there
    as well. Owners and contributors see their workspace, administrators the platform.
    """


@activity.command("list", common=_COMMON, example="stellwerk activity list --result denied --since 1d")
@_selection
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="At most so many.")
@click.option(
    *("-o", "--output", "form"),
    type=click.Choice(["table", "json", "csv", "jsonl"]),
    default="table",
    help="Form of the result; csv and jsonl are those of export, with all there is.",
)
def activity_list(session: Session, platform: bool, limit: int, form: str, **selection: Any) -> None:
    """List activities, newest first."""
    log, selection = _log(session, platform), _filled(selection)
    if form in ("csv", "jsonl"):
        _write(log.export(form=form, **selection), None)
        return
    found = log.list(limit=limit, **selection)
    output.listing(
        found,
        form == "json",
        ("TIME", "RESULT", "ACTOR", "ACTION", "RESOURCE", "ADDRESS", "REASON"),
        lambda item: (
            output.when(item.time),
            _result(item),
            item.actor,
            item.action,
            item.resource,
            item.address,
            item.reason,
        ),
    )
    if len(found) == limit and form == "table":
        click.echo(f"These are the newest {limit}; --limit shows more, export all.", err=True)


@activity.command("export", common=_COMMON, example="stellwerk activity export --since 30d --file log.csv")
@_selection
@click.option(
    *("-o", "--output", "form"),
    type=click.Choice(["csv", "jsonl"]),
    default="csv",
    show_default=True,
    help="CSV (RFC 4180), or one JSON object a line.",
)
@click.option("--file", type=PathType(dir_okay=False), help="Write here, not to stdout.")
def activity_export(session: Session, platform: bool, form: str, file: Path | None, **selection: Any) -> None:
    """Write all activities, oldest first.

    In CSV, what a spreadsheet would take for a formula begins with an apostrophe.
    """
    _write(_log(session, platform).export(form=form, **_filled(selection)), file)


def _log(session: Session, platform: bool) -> "Activities":
    return session.client().activities if platform else session.workspace().activities


def _filled(selection: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value if value is not None or name in ("since", "until") else ""
        for name, value in selection.items()
    }


def _result(item: Any) -> str:
    name = "denied" if item.result == 2 else "done"
    return name if item.count <= 1 else f"{name} x{item.count}"


def _write(pieces: Any, file: Path | None) -> None:
    """A file appears whole or not at all."""
    if file is None:
        for piece in pieces:
            sys.stdout.buffer.write(piece)
        return
    temporary = file.with_name(f".{file.name}.part")
    try:
        with temporary.open("wb") as target:
            for piece in pieces:
                target.write(piece)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
    click.echo(f"Wrote {file}.", err=True)
