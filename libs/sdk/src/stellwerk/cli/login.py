"""`stellwerk login|logout|whoami`."""

import socket
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from stellwerk import logins
from stellwerk.cli import output
from stellwerk.cli.base import Command, Session
from stellwerk.cli.confirm import confirm
from stellwerk.errors import StellwerkError, invalid

if TYPE_CHECKING:
    from stellwerk import Client

_HERE = ("output", "grpc_address", "data_dir", "debug")


def _client(session: Session, key: str = "") -> "Client":
    """A connection that shows this key, or none."""
    from stellwerk import Client

    flags = replace(session.flags, api_key=key or None, anonymous=not key)
    return session.context.with_resource(Client(flags=flags))


@click.command(cls=Command, common=_HERE, example="stellwerk login")
@click.option("--invitation", is_flag=True, help="Use an invitation, which is asked for.")
@click.option("--key", is_flag=True, help="Use an API key, which is asked for.")
@click.option("--name", default="", help="What the key is called in lists.  [default: this host's name]")
def login(session: Session, invitation: bool, key: bool, name: str) -> None:
    """Sign in and keep the key on this machine.

    Without an option you sign in with a browser, here or on any device. Invitation and key are read from a
    prompt, or from standard input when that is no terminal. The key goes into the keyring of the system, or
    where there is none into a file that only you can read.
    """
    if invitation and key:
        raise click.UsageError("Give --invitation or --key, not both.")
    address = _address(session, for_key=True)
    if key:
        found = _with_key(session)
    elif invitation:
        code = _secret("Invitation")
        begun = _client(session).sessions.accept(code, display_name=name or socket.gethostname())
        found = logins.Login(begun.user.name, begun.api_key.name, "invitation", begun.key)
    else:
        found = _with_browser(session, name or socket.gethostname())
    place = logins.save(address, found)
    if session.json:
        output.document({"user": found.user, "key": found.key_name, "address": address, "stored": place})
        return
    click.echo(f"Signed in to {address} as {found.user}; the key is in {_shown(place)}.")


def _with_key(session: Session) -> logins.Login:
    key = _secret("API key")
    caller = _client(session, key).whoami()
    if not caller.key:
        raise invalid(
            "KEY_OF_NOBODY", f"This is no key of a person, but of {caller.subject}.", "Use your own."
        )
    return logins.Login(caller.subject, caller.key, "key", key)


def _with_browser(session: Session, name: str) -> logins.Login:
    from stellwerk import device_login

    client = _client(session)
    options = client.sessions.options()
    if not options.oidc_issuer or not options.oidc_device_client_id:
        raise StellwerkError(
            "OIDC_NOT_CONFIGURED",
            "This Stellwerk has no OpenID provider for terminals.",
            "Use `stellwerk login --key` or `stellwerk login --invitation`.",
            code="FAILED_PRECONDITION",
        )

    def show(url: str, code: str, complete: str) -> None:
        click.echo(f"Open {complete or url}\nand check that it shows the code {code}", err=True)

    id_token = device_login.id_token(options, show)
    begun = client.sessions.exchange(id_token, display_name=name)
    return logins.Login(begun.user.name, begun.api_key.name, "session", begun.key)


@click.command(cls=Command, common=_HERE, example="stellwerk logout")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def logout(session: Session, yes: bool) -> None:
    """Forget the login on this machine, and end its key.

    An API key that you brought yourself, with `stellwerk login --key`, stays good.
    """
    address = _address(session)
    found = logins.find(address)
    if found is None:
        raise StellwerkError(
            "NOT_SIGNED_IN", f"Nobody has signed in to {address} here.", "", code="FAILED_PRECONDITION"
        )
    if found.origin == "invitation" and not yes:
        text = "Your first key is kept nowhere else. Without another you need a new invitation."
        confirm(text, f"{text} End it?")
    ended = found.origin != "key" and _revoke(session, found)
    logins.forget(address)
    if session.json:
        output.document({"user": found.user, "address": address, "revoked": ended})
        return
    rest = "the key has ended" if ended else f"the key {found.key_name} is still good where you have it"
    click.echo(f"Signed out of {address}; {rest}.")


def _revoke(session: Session, found: logins.Login) -> bool:
    """Ends the key; one that has ended already is as good."""
    try:
        _client(session, found.key).keys.revoke(found.key_name)
    except StellwerkError as error:
        if error.code != "UNAUTHENTICATED":
            raise
    return True


@click.command(cls=Command, example="stellwerk whoami")
def whoami(session: Session) -> None:
    """Show who you are here, and where the key comes from."""
    settings = session.settings()
    client = session.client()
    caller = client.whoami()
    user: Any = client.users.get() if caller.role == "User" else None
    if session.json:
        shown = {"subject": caller.subject, "role": caller.role, "administrator": caller.administrator}
        known = {"email": user.email, "display_name": user.display_name} if user else {}
        place = {"key": caller.key, "key_from": settings.origins.get("api_key", "")}
        output.document({**shown, **known, **place, "address": settings.grpc_address})
        return
    output.lines(
        [
            ("you", caller.subject),
            ("name", user.display_name if user else ""),
            ("email", user.email if user else ""),
            ("administrator", "yes" if caller.administrator else ""),
            ("role", "" if user else caller.role),
            ("key", caller.key),
            ("key from", settings.origins.get("api_key", "")),
            ("address", settings.grpc_address),
        ]
    )


def _address(session: Session, *, for_key: bool = False) -> str:
    from stellwerk.settings import require, require_trusted

    settings = require(session.settings_without_key())
    if for_key:
        require_trusted(settings)
    return settings.grpc_address


def _secret(what: str) -> str:
    """From a prompt that does not echo, or a line of standard input; never from an argument."""
    if sys.stdin.isatty():
        return str(click.prompt(what, hide_input=True, err=True)).strip()
    text = sys.stdin.readline().strip()
    if not text:
        raise click.UsageError(f"Standard input has no {what.lower()}.")
    return text


def _shown(place: str) -> str:
    return "the keyring" if place == logins.KEYRING else f"{place} (no keyring here)"
