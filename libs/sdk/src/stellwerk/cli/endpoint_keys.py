"""`stellwerk endpoint keys|auth`: what callers of an endpoint show."""

from typing import Any

import click

from stellwerk.cli import output
from stellwerk.cli.base import Command, Group, Session, traced
from stellwerk.cli.confirm import confirm

MODES = click.Choice(["key", "token", "both"])
_WORDS = {1: "key", 2: "token"}


@click.group(cls=Group)
def keys() -> None:
    """The primary and the secondary key of an endpoint.

    Callers send one as `Authorization: Bearer KEY`. Each opens this endpoint and nothing else.
    """


@keys.command("show-hint", example="stellwerk endpoint keys show-hint digits")
@click.argument("endpoint")
def show_hint(session: Session, endpoint: str) -> None:
    """Show when the keys were made and how they end."""
    item = session.workspace().endpoints.get(endpoint).message
    rows = [_hint("primary", item.primary_key), _hint("secondary", item.secondary_key)]
    if session.json:
        output.document([dict(zip(("key", "hint", "created"), row, strict=True)) for row in rows])
        return
    output.table(("KEY", "HINT", "CREATED"), rows)


def _hint(which: str, hint: Any) -> tuple[str, str, str]:
    return which, f"swe_…{hint.ending}" if hint.ending else "none", output.when(hint.create_time)


@keys.command("regenerate", example="stellwerk endpoint keys regenerate digits --key secondary")
@click.argument("endpoint")
@click.option("--key", "which", type=click.Choice(["primary", "secondary"]), required=True, help="Which.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@traced
def regenerate(session: Session, endpoint: str, which: str, yes: bool) -> None:
    """Make a key anew and print it. It is shown only now.

    The key before it is refused within a second; the other one goes on, so that callers can change over.
    """
    workspace = session.workspace()
    item = workspace.endpoints.get(endpoint).message
    hint = item.primary_key if which == "primary" else item.secondary_key
    if hint.ending and not yes:
        text = f"Whatever uses the {which} key that ends in {hint.ending} is refused."
        confirm(text, f"{text} Make a new one?")
    made = workspace.endpoint_keys.regenerate(endpoint, which)
    if session.json:
        output.document({"endpoint": made.endpoint.name, which: made.key})
        return
    click.echo(f"The {which} key of {endpoint}. It is shown only now:", err=True)
    click.echo(made.key)


@click.command("auth", cls=Command, example="stellwerk endpoint auth digits key")
@click.argument("endpoint")
@click.argument("mode", type=MODES)
@traced
def auth(session: Session, endpoint: str, mode: str) -> None:
    """Say what callers may show.

    Either of the endpoint's keys, tokens and API keys of the platform, or both kinds.
    """
    changed = session.workspace().endpoint_keys.set_auth_mode(endpoint, mode)
    output.facts(changed, session.json, [("name", changed.name), ("callers show", mode_word(changed))])


def mode_word(endpoint: Any) -> str:
    """`key`, `token` or `both`."""
    return _WORDS.get(endpoint.auth_mode, "both")


def make_both(session: Session, endpoint: str) -> dict[str, str]:
    """The first two keys of a new endpoint."""
    made = session.workspace().endpoint_keys
    return {which: made.regenerate(endpoint, which).key for which in ("primary", "secondary")}
