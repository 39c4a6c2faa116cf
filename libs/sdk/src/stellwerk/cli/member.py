"""`stellwerk member`: who may do what in a workspace."""

from typing import TYPE_CHECKING

import click

from stellwerk import names
from stellwerk.cli import output
from stellwerk.cli.base import Group, Session, traced
from stellwerk.cli.confirm import confirm
from stellwerk.errors import StellwerkError
from stellwerk.roles import ROLES, role_name

if TYPE_CHECKING:
    from stellwerk._sync.members import Members
    from stellwerk_protos.registry.v1 import members_pb2

_ROLE = click.Choice(ROLES)


@click.group(cls=Group)
def member() -> None:
    """People and their roles in a workspace.

    docs/security.md says what each role may do.
    """


@member.command("add", example="stellwerk member add alice --role data-scientist")
@click.argument("user", metavar="PERSON")
@click.option("--role", type=_ROLE, default="reader", show_default=True, help="What the person may do.")
@traced
def add(session: Session, user: str, role: str) -> None:
    """Let a person into the workspace."""
    members = session.workspace().members
    if (known := _find(members, user)) is not None and role_name(known.role) != role:
        raise StellwerkError(
            "ALREADY_MEMBER",
            f"{user} is a member already: {role_name(known.role)}.",
            f"Change that with: stellwerk member role {user} {role}",
            code="ALREADY_EXISTS",
        )
    _show(session, members.set(user, role))


def _find(members: "Members", user: str) -> "members_pb2.Member | None":
    try:
        return members.get(user)
    except StellwerkError as error:
        if error.code != "NOT_FOUND":
            raise
        return None


@member.command("role", example="stellwerk member role alice contributor")
@click.argument("user", metavar="PERSON")
@click.argument("role", type=_ROLE)
@traced
def role_(session: Session, user: str, role: str) -> None:
    """Change the role of a member."""
    members = session.workspace().members
    members.get(user)
    _show(session, members.set(user, role))


@member.command("list", example="stellwerk member list")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="At most so many.")
def list_(session: Session, limit: int) -> None:
    """List the members and their roles."""
    output.listing(
        session.workspace().members.list(limit=limit),
        session.json,
        ("PERSON", "ROLE", "SINCE"),
        lambda item: (names.last(item.user), role_name(item.role), output.when(item.update_time)),
    )


@member.command("remove", example="stellwerk member remove alice")
@click.argument("user", metavar="PERSON")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@traced
def remove(session: Session, user: str, yes: bool) -> None:
    """Take a person's role away.

    What the person has open in the workspace ends within a second. Undo it with `stellwerk member add`.
    """
    members = session.workspace().members
    if not yes:
        role = role_name(members.get(user).role)
        text = f"{user} is {role} here; what {user} has open in the workspace ends at once."
        confirm(text, f"{text} Remove {user}?")
    _show(session, members.remove(user))


def _show(session: Session, found: "members_pb2.Member") -> None:
    facts = [
        ("person", names.last(found.user)),
        ("role", role_name(found.role) or "none any more"),
        ("changed", output.when(found.update_time)),
    ]
    output.facts(found, session.json, facts)
