"""`stellwerk events credentials`: NATS credentials for programs that read the journal."""

from datetime import datetime
from typing import Any

import click

from stellwerk import names
from stellwerk.cli import output
from stellwerk.cli.base import Group, Session, traced
from stellwerk.cli.confirm import confirm
from stellwerk.cli.times import Moment, Start


@click.group(cls=Group)
def credentials() -> None:
    """Credentials of programs that read events by NATS.

    They open the journal of the workspaces that you may read, and nothing else; they end when you
    revoke them, and what you may no longer read ends with your role. docs/events.md has an example.
    """


@credentials.command("create", example="stellwerk events credentials create --name dashboard --since 1d")
@click.option("--name", default="", help="Name.  [default: chosen for you]")
@click.option("--for", "purpose", default="", help="What they are for, in some words.")
@click.option("--workspaces", default="", metavar="A,B", help="Workspaces.  [default: the configured one]")
@click.option("--since", type=Start(), default=0, help="First event: its sequence or a time.")
@click.option("--expires", type=Moment(later=True), help="When they end: 30d, or a date.  [default: never]")
@traced
def create(
    session: Session,
    name: str,
    purpose: str,
    workspaces: str,
    since: int | datetime,
    expires: datetime | None,
) -> None:
    """Create credentials and print them.

    The password is shown this once.
    """
    client = session.client()
    wanted = [part.strip() for part in workspaces.split(",") if part.strip()]
    made = client.subscriptions.create(
        wanted or [session.workspace().name],
        name=name,
        display_name=purpose,
        since=since,
        expires=expires,
    )
    document = _connection(made)
    if session.json:
        output.document(document)
        return
    for key, value in document.items():
        click.echo(f"{key + ':':<15} {', '.join(value) if isinstance(value, list) else value}")
    click.echo("Keep the password: it is shown this once. docs/events.md has an example.", err=True)


def _connection(made: Any) -> dict[str, Any]:
    """What a plain NATS client needs."""
    return {
        "name": made.subscription.name,
        "workspaces": list(made.subscription.workspaces),
        "url": made.nats_url,
        "user": made.nats_user,
        "password": made.nats_password,
        "inbox_prefix": f"_INBOX_{made.nats_user}",
        "subjects": list(made.subjects),
        "stream": made.stream,
        "consumer": made.subscription.consumer,
        "api_prefix": "SUBSCRIBER.API",
    }


@credentials.command("list", example="stellwerk events credentials list")
@click.option("--user", default="", help="Whose, for administrators.  [default: yours]")
def list_(session: Session, user: str) -> None:
    """List credentials, newest first."""
    output.listing(
        session.client().subscriptions.list(user),
        session.json,
        ("NAME", "WORKSPACES", "CREATED", "EXPIRES", "REVOKED", "FOR"),
        lambda item: (
            names.last(item.name),
            ", ".join(names.last(name) for name in item.workspaces),
            output.when(item.create_time),
            output.when(item.expire_time),
            output.when(item.revoke_time),
            item.display_name,
        ),
    )


@credentials.command("revoke", example="stellwerk events credentials revoke dashboard")
@click.argument("name")
@click.option("--user", default="", help="Whose, for administrators.  [default: yours]")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@traced
def revoke(session: Session, name: str, user: str, yes: bool) -> None:
    """End credentials and the connections that use them."""
    if not yes:
        text = f"Programs that use {name} are cut off for good, and its position in the journal is forgotten."
        confirm(text, f"{text} Revoke it?")
    revoked = session.client().subscriptions.revoke(name, user)
    if session.json:
        output.document(output.to_json(revoked))
    else:
        click.echo(f"Revoked {revoked.name}.", err=True)
