"""Questions before what cannot be undone."""

import sys

import click

from stellwerk.errors import invalid


def confirm(consequence: str, question: str) -> None:
    """Asks a person; a script has to say --yes.

    Raises `StellwerkError` (CONFIRMATION_MISSING) where nobody can be asked, `click.Abort` for a no.
    """
    if not sys.stdin.isatty():
        raise invalid("CONFIRMATION_MISSING", consequence, "Add --yes to do it.")
    click.confirm(question, abort=True, err=True)
