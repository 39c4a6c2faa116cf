"""`stellwerk run`: change, repeat, deliver and remove runs."""

from pathlib import Path
from typing import Any

import click

from stellwerk import names
from stellwerk.cli import arguments, output
from stellwerk.cli.arguments import PathType
from stellwerk.cli.base import Session, traced
from stellwerk.cli.confirm import confirm
from stellwerk.cli.run import run


def show_run(session: Session, found: Any) -> None:
    """One line, or the run as an object."""
    if session.json:
        output.document(output.to_json(found.message))
    else:
        click.echo(f"{found.id}: {found.state}")


@run.command("update", example="stellwerk run update RUN --tag best=yes --description 'The one to keep'")
@click.argument("name", metavar="RUN")
@click.option("--tag", "tags", multiple=True, metavar="NAME=VALUE", help="Set a tag. Repeatable.")
@click.option("--description", help="Free text.")
@click.option("--display-name", help="A name for people.")
@traced
def update(
    session: Session, name: str, tags: tuple[str, ...], description: str | None, display_name: str | None
) -> None:
    """Change tags, description or display name."""
    if not tags and description is None and display_name is None:
        raise click.UsageError("Nothing to change is given.")
    found = session.workspace().runs.get(name)
    found.update(
        tags=arguments.pairs(tags, "--tag") if tags else None,
        description=description,
        display_name=display_name,
    )
    show_run(session, found)


@run.command("archive", example="stellwerk run archive RUN")
@click.argument("runs", metavar="RUN ...", nargs=-1, required=True)
@traced
def archive(session: Session, runs: tuple[str, ...]) -> None:
    """Hide runs that have ended from lists and searches."""
    for name in runs:
        show_run(session, session.workspace().runs.get(name).archive())


@run.command("restore", example="stellwerk run restore RUN")
@click.argument("runs", metavar="RUN ...", nargs=-1, required=True)
@traced
def restore(session: Session, runs: tuple[str, ...]) -> None:
    """Show archived runs again."""
    for name in runs:
        show_run(session, session.workspace().runs.get(name).restore())


@run.command("clone", example="stellwerk run clone RUN --variable EPOCHS=20")
@click.argument("name", metavar="RUN")
@click.option("-c", "--command", default="", help="Another command.")
@click.option("--compute", default="", help="Another compute.")
@click.option("-e", "--environment", default="", help="Another environment, NAME[:VERSION].")
@click.option("--variable", "variables", multiple=True, metavar="NAME=VALUE", help="Repeatable.")
@click.option("--tag", "tags", multiple=True, metavar="NAME=VALUE", help="Repeatable.")
@click.option("--name", "run_id", default="", help="Id of the new run.  [default: chosen by Stellwerk]")
@traced
def clone(
    session: Session, name: str, variables: tuple[str, ...], tags: tuple[str, ...], run_id: str, **other: str
) -> None:
    """Submit a run again: the same snapshot, environment and inputs."""
    made = (
        session.workspace()
        .runs.get(name)
        .resubmit(
            name=run_id,
            variables=arguments.pairs(variables, "--variable"),
            tags=arguments.pairs(tags, "--tag"),
            **other,
        )
    )
    if session.json:
        output.document(output.to_json(made.message))
    else:
        click.echo(f"Submitted {made.id}; watch it: stellwerk run watch {made.id}")


@run.command("upload", example="stellwerk run upload RUN report.html --to reports/report.html")
@click.argument("name", metavar="RUN")
@click.argument("path", type=PathType())
@click.option("--to", "target", default="", help="File, or folder for a folder.  [default: its own name]")
@traced
def upload(session: Session, name: str, path: Path, target: str) -> None:
    """Keep a local file or folder with a run."""
    files = session.workspace().runs.get(name).upload(path, target)
    row = ("FILE", "SIZE"), lambda item: (item.path, output.size(item.size_bytes))
    output.listing(files, session.json, *row)


@run.command("snapshot", example="stellwerk run snapshot RUN --to code.zip")
@click.argument("name", metavar="RUN")
@click.option("--to", "target", type=PathType(), help="Folder, or file that ends in .zip.")
def snapshot(session: Session, name: str, target: Path | None) -> None:
    """List the source files that a run started with, or write them."""
    found = session.workspace().runs.get(name)
    files = found.snapshot() if target is None else found.download_snapshot(target)
    row = ("FILE", "SIZE"), lambda item: (item.path, item.link_target or output.size(item.size_bytes))
    output.listing(files, session.json, *row)


@run.command("ship", example="stellwerk run ship ~/.local/share/stellwerk/interactive/RUN")
@click.argument("folder", type=PathType())
@traced
def ship(session: Session, folder: Path) -> None:
    """Deliver what an interactive run left here, and end it."""
    from stellwerk import states

    found = session.client().ship(folder)
    if session.json:
        output.document(output.to_json(found))
    else:
        click.echo(f"{names.last(found.name)}: {states.run(found)}; all that it logged is delivered")


@run.command("remove", example="stellwerk run remove --experiment digits")
@click.argument("runs", metavar="[RUN ...]", nargs=-1)
@click.option("--experiment", default="", help="What the retention rule of this experiment lets go.")
@click.option("--rules", is_flag=True, help="What the retention rules of all experiments let go.")
@click.option("--dry-run", is_flag=True, help="Only count.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@traced
def remove(
    session: Session, runs: tuple[str, ...], experiment: str, rules: bool, dry_run: bool, yes: bool
) -> None:
    """Remove runs for good: their points, logs, files. Counts first, and asks."""
    if sum(map(bool, (runs, experiment, rules))) != 1:
        raise click.UsageError("Name runs, or --experiment, or --rules.")
    workspace = session.workspace()
    preview = workspace.runs.remove(runs, experiment=experiment)
    if dry_run or not preview.run_count:
        _show_report(session, preview)
        return
    if not yes:
        counted = _counted(preview)
        confirm(f"This would remove {counted} for good.", f"Remove {counted} for good?")
    _show_report(session, workspace.runs.remove(runs, experiment=experiment, dry_run=False))


def _counted(report: Any) -> str:
    blobs = f"{report.blob_count} blobs ({output.size(report.blob_bytes)})"
    if report.blobs_uncounted:
        blobs = "blobs that cannot be counted now"
    return (
        f"{report.run_count} runs with {report.point_count} points, {output.size(report.log_bytes)} of logs "
        f"and {blobs}"
    )


def _show_report(session: Session, report: Any) -> None:
    if session.json:
        output.document(output.to_json(report))
        return
    click.echo(f"{'Would remove' if report.validate_only else 'Removed'} {_counted(report)}")
    for name in report.runs:
        click.echo(f"  {names.last(name)}")
