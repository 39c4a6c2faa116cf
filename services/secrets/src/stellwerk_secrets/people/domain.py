"""People, keys and invitations: names, bounds, and how they change. Pure rules."""

import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp

from stellwerk_platform import names
from stellwerk_platform.auth import API_KEY_PREFIX
from stellwerk_platform.documents import timestamp
from stellwerk_platform.errors import FailedPrecondition, InvalidArgument
from stellwerk_platform.journal import Fact
from stellwerk_protos.secrets.v1 import users_pb2 as pb
from stellwerk_secrets.domain import sha256_of

OWNER = "users/owner"
ME = "users/me"
INVITATION_PREFIX = "swi_"
INVITATION_DAYS = 7
# So long a key that has ended is still listed.
ENDED_KEY_DAYS = 90
MAXIMUM_KEYS = 100
_DISPLAY_NAME_LENGTH = 200
_EMAIL_LENGTH = 254
_EMAIL = re.compile(r"[^@\s\x00-\x20\x7f]+@[^@\s\x00-\x20\x7f]+")
_SHOWN_CHARACTERS = len(API_KEY_PREFIX) + 6
_UPDATABLE = ("display_name", "email", "administrator")


@dataclass(frozen=True)
class Issued:
    """A key or invitation in the one moment in which it is known."""

    text: str
    digest: str


def new_key() -> Issued:
    """An API key: 32 random bytes, so that its plain digest cannot be reversed."""
    return _issued(API_KEY_PREFIX)


def new_invitation() -> Issued:
    """An invitation, as strong as a key."""
    return _issued(INVITATION_PREFIX)


def _issued(prefix: str) -> Issued:
    text = prefix + secrets.token_urlsafe(32)
    return Issued(text, sha256_of(text))


def check_user_id(user_id: str) -> str:
    """The name of a person with this id; raises `InvalidArgument`."""
    if f"users/{user_id}" == ME:
        raise InvalidArgument("INVALID_NAME", "'me' stands for the caller.", "Choose another name.")
    return f"users/{names.check_id('users', user_id)}"


def check_display_name(text: str) -> str:
    """Raises `InvalidArgument` for more than 200 characters or a control character."""
    if len(text) > _DISPLAY_NAME_LENGTH or not text.isprintable():
        raise InvalidArgument(
            "INVALID_DISPLAY_NAME",
            "The display name is too long or has characters that cannot be shown.",
            f"Use up to {_DISPLAY_NAME_LENGTH} printable characters.",
        )
    return text


def check_email(text: str) -> str:
    """The address as it is stored and compared: in lower case. Raises `InvalidArgument`."""
    if text and (len(text) > _EMAIL_LENGTH or not _EMAIL.fullmatch(text)):
        raise InvalidArgument(
            "INVALID_EMAIL", f"{text[:80]!r} is not an e-mail address.", "Give one like ada@example.org."
        )
    return text.lower()


def check_expiry(expire_time: Timestamp | None) -> datetime | None:
    """When a key ends; raises `InvalidArgument` for a moment that has passed."""
    if expire_time is None:
        return None
    try:
        moment = expire_time.ToDatetime(UTC)
    except (ValueError, OverflowError):
        moment = datetime.min.replace(tzinfo=UTC)
    if moment <= datetime.now(UTC):
        raise InvalidArgument(
            "INVALID_EXPIRY", "The key would end before it began.", "Give a time in the future, or none."
        )
    return moment


def make_key(
    user: str,
    key_id: str,
    key: str,
    origin: pb.ApiKeyOrigin.ValueType,
    *,
    display_name: str = "",
    expire_time: datetime | None = None,
) -> pb.ApiKey:
    """The resource of a key; an empty id is chosen here. Of the key only its beginning is kept."""
    key_id = names.check_id("keys", key_id) if key_id else f"k-{secrets.token_hex(5)}"
    made = pb.ApiKey(
        name=f"{user}/keys/{key_id}",
        display_name=check_display_name(display_name),
        prefix=key[:_SHOWN_CHARACTERS],
        origin=origin,
    )
    if expire_time is not None:
        made.expire_time.CopyFrom(timestamp(expire_time))
    return made


def has_ended(key: pb.ApiKey, moment: datetime) -> bool:
    """Whether a key opens nothing any more."""
    return key.HasField("revoke_time") or is_expired(key, moment)


def is_expired(key: pb.ApiKey, moment: datetime) -> bool:
    """Whether its time is over."""
    return key.HasField("expire_time") and key.expire_time.ToDatetime(UTC) <= moment


def forgettable_before(moment: datetime) -> datetime:
    """Keys that ended before this are removed when their owner gets a new one."""
    return moment - timedelta(days=ENDED_KEY_DAYS)


def revoke(key: pb.ApiKey, code: str, text: str, moment: Timestamp) -> Fact | None:
    """Ends a key; None when it was revoked before."""
    if key.HasField("revoke_time"):
        return None
    key.revoke_time.CopyFrom(moment)
    return Fact("revoked", code, text)


def update(user: pb.User, wanted: pb.User, paths: Iterable[str], actor: str) -> Fact | None:
    """Copies the fields of a mask; None when nothing changes. Raises `InvalidArgument`.

    Another e-mail address belongs to another account, so the one that was bound is let go.
    """
    changed = []
    for path in dict.fromkeys(paths):
        if path not in _UPDATABLE:
            raise InvalidArgument(
                "INVALID_UPDATE_MASK",
                f"{path[:80]!r} of a person cannot be changed.",
                f"Name {', '.join(_UPDATABLE)}.",
            )
        value = getattr(wanted, path)
        if path == "email":
            value = check_email(value)
        elif path == "display_name":
            value = check_display_name(value)
        if getattr(user, path) != value:
            setattr(user, path, value)
            changed.append(path)
    if "email" in changed:
        user.ClearField("oidc_issuer")
        user.ClearField("oidc_subject")
    return Fact("updated", "REQUESTED", f"{actor} changed {', '.join(changed)}.") if changed else None


def disable(user: pb.User, actor: str) -> Fact | None:
    """Locks a person out; None when that was done before."""
    if user.disabled:
        return None
    user.disabled = True
    return Fact("disabled", "REQUESTED", f"{actor} disabled {user.name}.")


def enable(user: pb.User, actor: str) -> Fact:
    """Lets a person in again. Who has the invitation can come in as them: never without a trace."""
    if not user.disabled:
        return Fact("invited", "REQUESTED", f"{actor} made a new invitation for {user.name}.")
    user.disabled = False
    return Fact("enabled", "REQUESTED", f"{actor} enabled {user.name}.")


def last_administrator() -> FailedPrecondition:
    """The error for a change after which nobody could administer."""
    return FailedPrecondition(
        "LAST_ADMINISTRATOR",
        "Nobody would be left to administer.",
        "Make somebody else an administrator first: stellwerk user update NAME --administrator.",
    )
