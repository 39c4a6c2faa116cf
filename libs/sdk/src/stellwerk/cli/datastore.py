"""`stellwerk datastore`: where a workspace keeps its content."""

from typing import Any

import click

from stellwerk import names
from stellwerk.cli import output
from stellwerk.cli.base import Group, Session, traced


@click.group(cls=Group)
def datastore() -> None:
    """Places for the content of a workspace.

    The platform's own store, or an S3 of yours.
    """


@datastore.command(
    "create",
    example="stellwerk datastore create lake --endpoint https://s3.example.com --bucket ml "
    "--access-key-secret s3-access --secret-key-secret s3-secret",
)
@click.argument("name", metavar="DATASTORE")
@click.option("--endpoint", default="", metavar="URL", help="S3 endpoint.  [default: the platform's store]")
@click.option("--bucket", default="", help="Existing bucket.")
@click.option("--prefix", default="", help="Before all keys.")
@click.option("--access-key-secret", default="", metavar="SECRET", help="Named secret with the access key.")
@click.option("--secret-key-secret", default="", metavar="SECRET", help="Named secret with the secret key.")
@click.option("--description", default="", help="Free text.")
@traced
def create(session: Session, name: str, **given: str) -> None:
    """Create a datastore, once a probe was kept there.

    The probe is written, read and deleted.
    `stellwerk workspace update --default-datastore` puts new content there; what there is stays.
    """
    _show(session, session.workspace().datastores.create(name, **given))


@datastore.command("list", example="stellwerk datastore list")
def list_(session: Session) -> None:
    """List the datastores."""
    output.listing(
        session.workspace().datastores.list(),
        session.json,
        ("DATASTORE", "ENDPOINT", "BUCKET", "PREFIX", "DESCRIPTION"),
        lambda item: (names.last(item.name), item.endpoint, item.bucket, item.prefix, item.description),
    )


@datastore.command("show", example="stellwerk datastore show workspacedefault")
@click.argument("name", metavar="DATASTORE")
def show(session: Session, name: str) -> None:
    """Show one datastore.

    A Reader sees no endpoint, bucket or secrets.
    """
    _show(session, session.workspace().datastores.get(name))


@datastore.command("delete", example="stellwerk datastore delete lake")
@click.argument("name", metavar="DATASTORE")
@traced
def delete(session: Session, name: str) -> None:
    """Delete a datastore in which nothing lies.

    The default one cannot be deleted.
    """
    session.workspace().datastores.delete(name)
    if not session.json:
        click.echo(f"Deleted {name}")


def _show(session: Session, item: Any) -> None:
    output.facts(
        item,
        session.json,
        [
            ("name", item.name),
            ("created", output.when(item.create_time)),
            ("by", item.creator),
            ("endpoint", item.endpoint),
            ("bucket", item.bucket),
            ("prefix", item.prefix),
            ("access key", item.access_key_secret and f"secret {names.last(item.access_key_secret)}"),
            ("secret key", item.secret_key_secret and f"secret {names.last(item.secret_key_secret)}"),
            ("description", item.description),
        ],
    )
