"""Questions before what cannot be undone."""

import sys

import click

from stellwerk.cli.errors import FAILED
from stellwerk.errors import invalid


def confirm(consequence: str, question: str) -> None:
    """Asks a person; a script has to say --yes.

    Raises `StellwerkError` (CONFIRMATION_MISSING) where nobody can be asked, `click.exceptions.Exit` for a
    no, `click.Abort` for Ctrl-C.
    """
    if not sys.stdin.isatty():
        raise invalid("CONFIRMATION_MISSING", consequence, "Add --yes to do it.")
    if not click.confirm(question, err=True):
        click.echo("Nothing was changed.", err=True)
        raise click.exceptions.Exit(FAILED)
