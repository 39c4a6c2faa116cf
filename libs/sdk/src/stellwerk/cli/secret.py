"""`stellwerk secret`: values come from a prompt, a file or standard input, never from the command line."""

import sys
from typing import TYPE_CHECKING, BinaryIO

import click

from stellwerk import names
from stellwerk.cli import output
from stellwerk.cli.base import Group, Session, traced
from stellwerk.cli.confirm import confirm

if TYPE_CHECKING:
    from stellwerk_protos.secrets.v1 import secrets_pb2


@click.group(cls=Group)
def secret() -> None:
    """Passwords and keys that runs may read, kept in Vault."""


@secret.command("set", example="pass show db | stellwerk secret set db-password")
@click.argument("name", metavar="SECRET")
@click.option(
    "-f", "--file", type=click.File("rb"), help="File with the value, as it is; - is standard input."
)
@click.option(
    "--expected-version",
    type=click.IntRange(0),
    help="Only while this is the latest version; 0: only if there is no such secret.",
)
@traced
def set_(session: Session, name: str, file: BinaryIO | None, expected_version: int | None) -> None:
    """Write a new version.

    The value comes from a prompt unless a file is named or standard input is one.

    The line end that a pipe or a prompt adds is not part of the value; of a file everything is.
    """
    found = session.workspace().secrets.set(name, _value(file), expected_version=expected_version)
    _show(session, found)


def _value(file: BinaryIO | None) -> bytes:
    if file is not None and file is not sys.stdin.buffer:
        return file.read()
    if file is None and sys.stdin.isatty():
        return str(click.prompt("Value", hide_input=True, confirmation_prompt=True)).encode()
    return sys.stdin.buffer.read().removesuffix(b"\n").removesuffix(b"\r")


@secret.command("get", example="stellwerk secret get db-password")
@click.argument("name", metavar="SECRET")
@click.option("--version", type=click.IntRange(1), help="This version.  [default: the latest]")
@traced
def get(session: Session, name: str, version: int | None) -> None:
    """Print the value. Who did that is in the activity log."""
    value = session.workspace().secrets.get_bytes(name, version=version)
    if session.json:
        output.document({"value": value.decode(errors="replace")})
        return
    sys.stdout.buffer.write(value)
    if sys.stdout.isatty():
        click.echo()


@secret.command("list", example="stellwerk secret list")
@click.option("--deleted", is_flag=True, help="Show deleted ones too.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="At most so many.")
def list_(session: Session, deleted: bool, limit: int) -> None:
    """List the secrets, less their values."""
    output.listing(
        session.workspace().secrets.list(include_deleted=deleted, limit=limit),
        session.json,
        ("SECRET", "VERSION", "CHANGED", "BY", "DELETED"),
        lambda item: (
            names.last(item.name),
            item.version,
            output.when(item.update_time),
            item.creator,
            output.when(item.delete_time),
        ),
    )


@secret.command("versions", example="stellwerk secret versions db-password")
@click.argument("name", metavar="SECRET")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="At most so many.")
def versions(session: Session, name: str, limit: int) -> None:
    """List the versions of a secret, newest first.

    The newest 100 are kept.
    """
    output.listing(
        session.workspace().secrets.versions(name, limit=limit),
        session.json,
        ("VERSION", "SET"),
        lambda item: (names.last(item.name), output.when(item.create_time)),
    )


@secret.command("delete", example="stellwerk secret delete db-password")
@click.argument("name", metavar="SECRET")
@click.option("--purge", is_flag=True, help="Remove all versions for good.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask before --purge.")
@traced
def delete(session: Session, name: str, purge: bool, yes: bool) -> None:
    """Delete a secret. It can be brought back with `undelete`, unless it is purged."""
    if purge and not yes:
        confirm(
            f"This would remove all versions of {name} for good.", f"Remove all versions of {name} for good?"
        )
    _show(session, session.workspace().secrets.delete(name, purge=purge))


@secret.command("undelete", example="stellwerk secret undelete db-password")
@click.argument("name", metavar="SECRET")
@traced
def undelete(session: Session, name: str) -> None:
    """Bring a deleted secret back with all its versions."""
    _show(session, session.workspace().secrets.undelete(name))


def _show(session: Session, found: "secrets_pb2.Secret") -> None:
    facts = [
        ("secret", names.last(found.name)),
        ("version", found.version),
        ("changed", output.when(found.update_time)),
        ("deleted", output.when(found.delete_time)),
    ]
    output.facts(found, session.json, facts)
