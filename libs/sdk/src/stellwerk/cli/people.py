"""`stellwerk user|key|signing-key`."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from stellwerk import names
from stellwerk.cli import output
from stellwerk.cli.base import Group, Session, traced
from stellwerk.cli.confirm import confirm

_UNITS = {"m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_limit = click.option(
    "--limit", type=click.IntRange(1), default=100, show_default=True, help="At most so many."
)
_yes = click.option("-y", "--yes", is_flag=True, help="Do not ask.")


@click.group(cls=Group)
def user() -> None:
    """People. Changing them is for administrators."""


@user.command("create", example="stellwerk user create ada --email ada@example.org")
@click.argument("name")
@click.option("--display-name", default="", help="For people to read.")
@click.option("--email", default="", help="By which the OpenID provider's account is found.")
@click.option("--administrator", is_flag=True, help="May create workspaces and people; sees no contents.")
@traced
def user_create(session: Session, name: str, display_name: str, email: str, administrator: bool) -> None:
    """Create a person and print the invitation.

    Whoever has the invitation gets one first key with it: `stellwerk login --invitation`. It is printed only
    now. Somebody with an e-mail address may sign in at the OpenID provider instead.
    """
    answer = session.client().users.create(
        name, display_name=display_name, email=email, administrator=administrator
    )
    _show_invitation(session, answer)


@user.command("list", example="stellwerk user list")
@_limit
def user_list(session: Session, limit: int) -> None:
    """List the people."""
    output.listing(
        session.client().users.list(limit=limit),
        session.json,
        ("NAME", "DISPLAY NAME", "EMAIL", "ADMINISTRATOR", "STATE"),
        lambda item: (
            names.last(item.name),
            item.display_name,
            item.email,
            "yes" if item.administrator else "",
            "disabled" if item.disabled else "",
        ),
    )


@user.command("show", example="stellwerk user show ada")
@click.argument("name", default="me")
def user_show(session: Session, name: str) -> None:
    """Show one person, yourself unless somebody is named."""
    _show_user(session, session.client().users.get(name))


@user.command("update", example="stellwerk user update ada --administrator")
@click.argument("name")
@click.option("--display-name", help="For people to read.")
@click.option("--email", help="Another one lets go of the account that was bound.")
@click.option("--administrator/--no-administrator", default=None, help="Whether they administer.")
@traced
def user_update(
    session: Session, name: str, display_name: str | None, email: str | None, administrator: bool | None
) -> None:
    """Change a person."""
    if display_name is None and email is None and administrator is None:
        raise click.UsageError("Nothing is to be changed.")
    changed = session.client().users.update(
        name, display_name=display_name, email=email, administrator=administrator
    )
    _show_user(session, changed)


@user.command("disable", example="stellwerk user disable ada")
@click.argument("name")
@_yes
@traced
def user_disable(session: Session, name: str, yes: bool) -> None:
    """Lock a person out.

    Every key, login and token ends within a second.
    """
    client = session.client()
    if not yes:
        living = [key for key in client.keys.list(name) if not _ended(key)]
        text = f"{name} has {len(living)} keys, which end for good. What they made stays."
        confirm(text, f"{text} Disable {name}?")
    _show_user(session, client.users.disable(name))


@user.command("enable", example="stellwerk user enable ada")
@click.argument("name")
@traced
def user_enable(session: Session, name: str) -> None:
    """Let a person in again and print a new invitation.

    Also for somebody who lost all keys, or whose invitation ended. Earlier invitations end.
    """
    _show_invitation(session, session.client().users.enable(name))


def _show_user(session: Session, item: Any) -> None:
    output.facts(
        item,
        session.json,
        [
            ("name", item.name),
            ("display name", item.display_name),
            ("email", item.email),
            ("administrator", "yes" if item.administrator else ""),
            ("state", "disabled" if item.disabled else ""),
            ("account", f"{item.oidc_subject} at {item.oidc_issuer}" if item.oidc_subject else ""),
            ("created", output.when(item.create_time)),
            ("by", item.creator),
        ],
    )


def _show_invitation(session: Session, answer: Any) -> None:
    if session.json:
        output.document(output.to_json(answer))
        return
    click.echo(f"{answer.user.name} may come in. Hand this over; it is shown only now:", err=True)
    click.echo(answer.invitation)
    click.echo(
        f"It gives one key until {output.when(answer.expire_time)}: stellwerk login --invitation", err=True
    )


@click.group(cls=Group)
def key() -> None:
    """API keys of people, for their programs."""


@key.command("create", example="stellwerk key create ci --expires 90d")
@click.argument("name", default="")
@click.option("--display-name", default="", help="What it is for.")
@click.option("--expires", metavar="TIME", help="30m, 12h, 30d, 4w or 2027-01-31.  [default: never]")
@traced
def key_create(session: Session, name: str, display_name: str, expires: str | None) -> None:
    """Create a key of your own and print it. It is shown only now."""
    moment = _moment(expires) if expires else None
    answer = session.client().keys.create(name, display_name=display_name, expires=moment)
    if session.json:
        output.document(output.to_json(answer))
        return
    end = output.when(answer.api_key.expire_time)
    click.echo(f"{answer.api_key.name}{f', until {end}' if end else ''}. It is shown only now:", err=True)
    click.echo(answer.key)


@key.command("list", example="stellwerk key list")
@click.option("--user", "owner", default="me", help="Whose; others' are for administrators.")
@_limit
def key_list(session: Session, owner: str, limit: int) -> None:
    """List keys, newest first."""
    output.listing(
        session.client().keys.list(owner, limit=limit),
        session.json,
        ("NAME", "BEGINS", "FOR", "CREATED", "LAST USED", "ENDS", "STATE"),
        lambda item: (
            names.last(item.name),
            item.prefix,
            item.display_name,
            output.when(item.create_time),
            output.minute(item.last_use_time),
            output.when(item.expire_time),
            _ended(item),
        ),
    )


@key.command("revoke", example="stellwerk key revoke ci")
@click.argument("name")
@click.option("--user", "owner", default="me", help="Whose; others' are for administrators.")
@_yes
@traced
def key_revoke(session: Session, name: str, owner: str, yes: bool) -> None:
    """End a key, everywhere within a second."""
    client = session.client()
    if not yes:
        own = client.whoami().key
        warning = " It is the one that this command uses." if names.last(own) == names.last(name) else ""
        text = f"Whatever uses the key {name} stops.{warning}"
        confirm(text, f"{text} Revoke it?")
    revoked = client.keys.revoke(name, user=owner)
    output.facts(revoked, session.json, [("name", revoked.name), ("state", _ended(revoked))])


@click.group("signing-key", cls=Group)
def signing_key() -> None:
    """The key in Vault that signs all tokens."""


@signing_key.command("rotate", example="stellwerk signing-key rotate")
@traced
def signing_key_rotate(session: Session) -> None:
    """Have new tokens signed by a new key.

    It signs within ten seconds. Tokens that the old one signed stay good, so nobody is cut off.
    """
    made = session.client().rotate_signing_key()
    output.facts(made, session.json, [("new key", made.key_id)])


def _ended(item: Any) -> str:
    if item.HasField("revoke_time"):
        return "revoked"
    if item.HasField("expire_time") and item.expire_time.ToDatetime(UTC) <= datetime.now(UTC):
        return "expired"
    return ""


def _moment(text: str) -> datetime:
    """A time from now, or a day; raises a usage error."""
    match = re.fullmatch(r"(\d{1,5})([mhdw])", text)
    if match:
        return datetime.now(UTC) + timedelta(seconds=int(match[1]) * _UNITS[match[2]])
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no time.", param_hint="--expires") from None
    return found.astimezone(UTC)
