"""Who may do what with people and keys: a person with their own, an administrator with anybody's.

Asked of the store: a token may say for a moment what was true before.
"""

from stellwerk_platform import names
from stellwerk_platform.auth import Caller, current_caller
from stellwerk_platform.errors import PermissionDenied
from stellwerk_secrets.people import domain
from stellwerk_secrets.people.store import People

_PERSON, _SERVICE = "User", "Service"


def resolve(name: str) -> str:
    """The person that a name stands for: `users/me` is the caller. Raises `InvalidArgument`."""
    caller = current_caller()
    if name == domain.ME and caller.role == _PERSON:
        return caller.subject
    (user_id,) = names.parse("users/*", name)
    return domain.check_user_id(user_id)


def require_self(user: str) -> None:
    """Raises `PermissionDenied` unless the caller is this person."""
    caller = current_caller()
    if caller.role != _PERSON or caller.subject != user:
        raise _denied(caller, f"act as {user}", "Only they themselves do.")


async def require_administrator(people: People) -> Caller:
    """The caller; raises `PermissionDenied` unless it is a person who administers."""
    caller = current_caller()
    if not await _administers(people, caller):
        raise _denied(caller, "administer people", "Ask an administrator.")
    return caller


async def require_self_or_administrator(people: People, user: str) -> Caller:
    """The caller; raises `PermissionDenied` unless it is this person or one who administers."""
    caller = current_caller()
    if (caller.role, caller.subject) != (_PERSON, user) and not await _administers(people, caller):
        raise _denied(caller, f"look after {user}", "Ask an administrator.")
    return caller


async def sees_all_of(people: People, user: str) -> bool:
    """Whether the caller sees more of a person than the names."""
    caller = current_caller()
    return caller.subject == user or caller.role == _SERVICE or await _administers(people, caller)


async def _administers(people: People, caller: Caller) -> bool:
    if caller.role != _PERSON:
        return False
    user = await people.users.find(caller.subject)
    return user is not None and user.administrator and not user.disabled


def _denied(caller: Caller, what: str, cure: str) -> PermissionDenied:
    return PermissionDenied("PERMISSION_DENIED", f"{caller.subject} ({caller.role}) may not {what}.", cure)
