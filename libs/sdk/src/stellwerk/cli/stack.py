"""`stellwerk up|down|status|logs`: the stack on this machine."""

import importlib
from typing import Any

import click

from stellwerk.cli import output
from stellwerk.cli.base import Command, Session
from stellwerk.errors import StellwerkError


def _launcher() -> Any:
    try:
        return importlib.import_module("stellwerk_launcher.stack")
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("stellwerk_launcher"):
            raise
        raise StellwerkError(
            "LAUNCHER_MISSING",
            "The servers of Stellwerk are not installed here.",
            "Install the package stellwerk-launcher, or connect to a running Stellwerk.",
        ) from error


@click.command(cls=Command, example="stellwerk up --detach")
@click.option("-d", "--detach", is_flag=True, help="Return when everything is ready.")
def up(session: Session, detach: bool) -> int:
    """Start Stellwerk on this machine."""
    return int(_launcher().up(session.data_dir, detach=detach) or 0)


@click.command(cls=Command, example="stellwerk down")
def down(session: Session) -> int:
    """Stop it; the data stays."""
    return int(_launcher().down(session.data_dir) or 0)


@click.command(cls=Command, example="stellwerk status --output json")
def status(session: Session) -> None:
    """Show every process and address."""
    state: dict[str, Any] = _launcher().status(session.data_dir)
    if session.json:
        output.document(state)
        return
    columns = ("name", "pid", "version", "address", "health")
    rows = [[process.get(column, "") for column in columns] for process in state.get("processes", ())]
    output.table([column.upper() for column in columns], rows)
    click.echo()
    for key, value in state.items():
        if isinstance(value, str):
            click.echo(f"{key + ':':<16} {value}")


@click.command(cls=Command, example="stellwerk logs runs -f")
@click.argument("service")
@click.option("-f", "--follow", is_flag=True, help="Go on with further lines as they come.")
def logs(session: Session, service: str, follow: bool) -> None:
    """Print the log of one process."""
    for line in _launcher().logs(session.data_dir, service, follow):
        click.echo(line)
