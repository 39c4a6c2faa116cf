"""`stellwerk up|down|status|logs|credentials`: the stack on this machine."""

import importlib
import re
import sys
from typing import Any

import click

from stellwerk.cli import output
from stellwerk.cli.base import Command, Group, Session
from stellwerk.errors import StellwerkError

# user:PASSWORD@ of a URL
_PASSWORD = re.compile(r"(?<=:)[^:/@]+(?=@)")


def launcher() -> Any:
    """The part that runs the stack; raises `StellwerkError` where it is not installed."""
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


# They ask this machine and nobody else: no workspace, no address, no key.
_OF_A_STACK = ("output", "data_dir", "debug")


def _progress(session: Session) -> Any:
    """Where lines for people go: stdout is for the document."""
    return sys.stderr if session.json else None


@click.command(cls=Command, common=_OF_A_STACK, example="stellwerk up --detach")
@click.option("-d", "--detach", is_flag=True, help="Return when everything is ready.")
def up(session: Session, detach: bool) -> int:
    """Start Stellwerk on this machine.

    With --output json its status is printed once it is ready.
    """
    found = launcher()

    def show() -> None:
        if session.json:
            output.document(found.status(session.data_dir))

    return int(found.up(session.data_dir, detach=detach, progress=_progress(session), on_ready=show))


@click.command(cls=Command, common=_OF_A_STACK, example="stellwerk down")
def down(session: Session) -> None:
    """Stop it and what runs on it; the data stays."""
    found = launcher().down(session.data_dir, _progress(session))
    if session.json:
        output.document(found)


@click.command(cls=Command, common=_OF_A_STACK, example="stellwerk status --output json")
def status(session: Session) -> None:
    """Show every process and address.

    Passwords in addresses are hidden; --output json has them, for scripts.
    """
    state: dict[str, Any] = launcher().status(session.data_dir)
    if session.json:
        output.document(state)
        return
    columns = ("name", "pid", "version", "address", "health")
    rows = [[process.get(column, "") for column in columns] for process in state.get("processes", ())]
    output.table([column.upper() for column in columns], rows)
    click.echo()
    for key, value in state.items():
        if isinstance(value, str):
            click.echo(f"{key + ':':<16} {_PASSWORD.sub('****', value)}")


@click.command(cls=Command, common=("data_dir", "debug"), example="stellwerk logs runs -f")
@click.argument("service")
@click.option("-f", "--follow", is_flag=True, help="Go on with further lines as they come.")
def logs(session: Session, service: str, follow: bool) -> None:
    """Print the log of one process."""
    for line in launcher().logs(session.data_dir, service, follow):
        click.echo(line)


@click.group("credentials", cls=Group)
def credentials() -> None:
    """Passwords and keys of the services on this machine."""


@credentials.command("rotate", common=_OF_A_STACK, example="stellwerk credentials rotate registry runs")
@click.argument("services", nargs=-1)
def rotate(session: Session, services: tuple[str, ...]) -> None:
    """Give services (all unless named) new passwords and keys.

    One after the other: keys and passwords for NATS, MongoDB and S3, and the secret id at Vault. The old
    ones stop to work, and each service is away for the moment of its restart.
    """
    rotated = launcher().rotate(session.data_dir, services, _progress(session))
    if session.json:
        output.document({"rotated": rotated})
    else:
        click.echo(f"New secrets: {', '.join(rotated)}.")
