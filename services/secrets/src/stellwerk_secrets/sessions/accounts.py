"""Which person an account of the OpenID provider is."""

import re
import secrets
from collections.abc import Iterator

from stellwerk_platform.errors import AlreadyExists, InvalidArgument, PermissionDenied
from stellwerk_platform.journal import Fact
from stellwerk_protos.secrets.v1.users_pb2 import User
from stellwerk_secrets.people import domain
from stellwerk_secrets.people.store import People
from stellwerk_secrets.sessions.oidc import Account

_TRIES = 5
_ID_LENGTH = 40


class Accounts:
    """Finds, binds or creates people for those who sign in."""

    def __init__(self, people: People, domains: frozenset[str]) -> None:
        self._people = people
        self._domains = domains

    async def person(self, account: Account) -> User:
        """The person who has signed in; raises `PermissionDenied` for somebody who may not come in."""
        for _ in range(_TRIES):
            try:
                user = await self._bound(account) or await self._by_email(account)
            except AlreadyExists:
                continue  # the same account signs in twice at the same moment, or the name is taken
            return _let_in(user)
        raise _denied("No name could be found for this account.")

    async def _bound(self, account: Account) -> User | None:
        return await self._people.find_user({"oidc_issuer": account.issuer, "oidc_subject": account.subject})

    async def _by_email(self, account: Account) -> User:
        email = _address(account.email)
        if not email or not account.email_verified:
            raise _denied("The provider has not verified an e-mail address of this account.")
        user = await self._people.find_user({"email": email})
        if user is None and email.rpartition("@")[2] not in self._domains:
            raise _denied(f"Nobody here has the e-mail address {email}.")
        if user is None:
            return await self._create(account, email)
        if user.oidc_subject:
            raise _denied(f"{user.name} belongs to another account with this address.")
        return await self._people.update_user(_let_in(user).name, lambda found: _bind(found, account))

    async def _create(self, account: Account, email: str) -> User:
        name = account.display_name[:200]
        for user_id in _ids(email):
            if await self._people.users.find(f"users/{user_id}") is None:
                break
        user = User(
            name=domain.check_user_id(user_id),
            display_name=name if name.isprintable() else "",
            email=email,
            creator="services/secrets",
            oidc_issuer=account.issuer,
            oidc_subject=account.subject,
        )
        fact = Fact(
            "created", "SIGNED_IN", f"Signed in for the first time at {account.issuer}.", user.creator
        )
        return (await self._people.create_user(user, fact, "", invites=False))[0]


def _let_in(user: User) -> User:
    if user.disabled:
        raise _denied(f"{user.name} is disabled.")
    return user


def _address(text: str) -> str:
    try:
        return domain.check_email(text)
    except InvalidArgument:
        return ""


def _ids(email: str) -> Iterator[str]:
    """Ids to try: what stands before the @, then the same with something behind it."""
    base = re.sub(r"[^a-z0-9_-]+", "-", email.partition("@")[0]).strip("-_")[:_ID_LENGTH] or "person"
    if f"users/{base}" != domain.ME:
        yield base
    yield f"{base}-2"
    yield f"{base}-{secrets.token_hex(3)}"


def _bind(user: User, account: Account) -> Fact | None:
    if user.oidc_subject:
        raise AlreadyExists("ACCOUNT_BOUND", f"{user.name} has an account already.", "Try again.")
    user.oidc_issuer, user.oidc_subject = account.issuer, account.subject
    return Fact("bound", "SIGNED_IN", f"Signed in for the first time at {account.issuer}.", user.name)


def _denied(why: str) -> PermissionDenied:
    return PermissionDenied(
        "LOGIN_NOT_ALLOWED",
        why,
        "Ask an administrator: stellwerk user create NAME --email ADDRESS, or stellwerk user update.",
    )
