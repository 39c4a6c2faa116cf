"""What a subscription may be, and what its credentials open. Pure rules."""

import hashlib
import json
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from stellwerk_platform import names
from stellwerk_platform.bus import Names
from stellwerk_platform.errors import InvalidArgument
from stellwerk_protos.secrets.v1 import subscriptions_pb2 as pb

MAXIMUM_WORKSPACES = 100
MAXIMUM_LIVING = 20
ACCOUNT = "SUBSCRIBERS"
# What a subscriber's client may put in the place of $JS.API; the launcher's NATS leads it here.
PREFIX = "SUBSCRIBER.API"
# A connection ends by itself after this time, should its end ever be missed.
LIFE_SECONDS = 3_600
# Before that it is ended gently, so that the client connects again by itself.
RENEW_SECONDS = 2_700
_PREFIX = "subscriber-"
_DISPLAY_NAME_LENGTH = 200
# A subject of the journal that no event has: whoever may read nothing is kept waiting there.
_NOTHING = ("journal", "-", "nothing")
_CONNECTIONS_SUBJECTS = 200
_PUBLISHED_BYTES = 4_096


@dataclass(frozen=True)
class Password:
    """A password in the one moment in which it is known."""

    text: str
    digest: str


def new_password() -> Password:
    """32 random bytes, so that the plain digest cannot be reversed."""
    text = secrets.token_urlsafe(32)
    return Password(text, digest_of(text))


def digest_of(password: str) -> str:
    """Under which a password is known."""
    return hashlib.sha256(password.encode()).hexdigest()


def new_consumer(bus_names: Names) -> str:
    """The name of consumer and NATS user: nobody can guess it, and so nobody its inbox.

    Servers that several namespaces share need to know whose it is.
    """
    return bus_names.stream(f"{_PREFIX}{secrets.token_hex(10)}")


def is_consumer(bus_names: Names, user: str) -> bool:
    """Whether a NATS user can be one of this namespace."""
    return (
        re.fullmatch(re.escape(_PREFIX) + "[0-9a-f]{20}" + re.escape(bus_names.stream("")), user) is not None
    )


def is_ours(bus_names: Names, user: str) -> bool:
    """Whether this namespace has to answer for a user: the default one does for every stranger."""
    return not bus_names.stream("") or user.endswith(bus_names.stream(""))


def make(user: str, request: pb.CreateSubscriptionRequest, consumer: str) -> pb.Subscription:
    """The new subscription; raises `InvalidArgument` for what cannot be one."""
    subscription_id = request.subscription_id or f"s{secrets.token_hex(5)}"
    workspaces = sorted(set(request.workspaces))
    if not 0 < len(workspaces) <= MAXIMUM_WORKSPACES:
        raise InvalidArgument(
            "INVALID_WORKSPACES",
            f"A subscription is for 1 to {MAXIMUM_WORKSPACES} workspaces.",
            "Name the workspaces whose events are wanted.",
        )
    for workspace in workspaces:
        names.parse("workspaces/*", workspace)
    if len(request.display_name) > _DISPLAY_NAME_LENGTH or not request.display_name.isprintable():
        raise InvalidArgument(
            "INVALID_DISPLAY_NAME", "The display name cannot be shown.", "Use up to 200 printable characters."
        )
    if request.start_sequence < 0:
        raise InvalidArgument("INVALID_SEQUENCE", "The start is before the journal.", "Use 0 or more.")
    subscription = pb.Subscription(
        name=f"{user}/subscriptions/{names.check_id('subscriptions', subscription_id)}",
        display_name=request.display_name,
        workspaces=workspaces,
        consumer=consumer,
    )
    if request.HasField("expire_time"):
        if seconds(request.expire_time) <= datetime.now(UTC).timestamp():
            raise InvalidArgument("INVALID_TIME", "The end is in the past.", "Choose a later one.")
        subscription.expire_time.CopyFrom(request.expire_time)
    return subscription


def seconds(time: Timestamp) -> float:
    """Since 1970; raises `InvalidArgument` for a time that there cannot be."""
    try:
        return float(time.ToDatetime(UTC).timestamp())
    except (ValueError, OverflowError):
        raise InvalidArgument("INVALID_TIME", "The time cannot be read.", "Use RFC 3339.") from None


def is_living(subscription: pb.Subscription) -> bool:
    """Whether it is neither revoked nor expired."""
    if subscription.HasField("revoke_time"):
        return False
    expires = subscription.HasField("expire_time")
    return not expires or seconds(subscription.expire_time) > datetime.now(UTC).timestamp()


def user_of(subscription: pb.Subscription) -> str:
    """`users/alice`"""
    return names.parent_of(subscription.name)


def readable(subscription: pb.Subscription, access: Iterable[str]) -> list[str]:
    """The workspaces that are wanted and may be read now; none once it has ended."""
    return sorted(set(subscription.workspaces) & set(access)) if is_living(subscription) else []


def filters(bus_names: Names, workspaces: Iterable[str]) -> list[str]:
    """Subjects of the journal of these workspaces."""
    wanted = [bus_names.subject("journal", names.id_of(name), ">") for name in workspaces]
    return wanted or [bus_names.subject(*_NOTHING)]


def label(subscription: pb.Subscription, workspaces: Iterable[str]) -> str:
    """What a connection is known by: whose it is, and what it was let in for."""
    digest = hashlib.sha256(json.dumps(sorted(workspaces)).encode()).hexdigest()[:16]
    return f"{subscription.consumer}:{digest}"


def user_claims(bus_names: Names, subscription: pb.Subscription, workspaces: list[str]) -> dict[str, Any]:
    """What a connection may do, as the claims of a NATS user token without the key that it is for.

    Nothing but to listen to the journal of these workspaces, and to fetch from and acknowledge to
    the consumer that was made for it. It may create none: a consumer can be told to deliver
    wherever its creator likes.
    """
    stream, consumer = bus_names.stream("JOURNAL"), subscription.consumer
    end = datetime.now(UTC).timestamp() + LIFE_SECONDS
    if subscription.HasField("expire_time"):
        end = min(end, seconds(subscription.expire_time))
    publish = [
        f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}",
        f"{PREFIX}.CONSUMER.MSG.NEXT.{stream}.{consumer}",
        f"{PREFIX}.CONSUMER.INFO.{stream}.{consumer}",
        f"$JS.ACK.{stream}.{consumer}.>",
    ]
    return {
        "name": label(subscription, workspaces),
        "aud": ACCOUNT,
        "exp": int(end),
        "nats": {
            "type": "user",
            "version": 2,
            "subs": _CONNECTIONS_SUBJECTS,
            "data": -1,
            "payload": _PUBLISHED_BYTES,
            "pub": {"allow": publish},
            "sub": {"allow": [*filters(bus_names, workspaces), f"{inbox(consumer)}.>"]},
        },
    }


def inbox(consumer: str) -> str:
    """Where answers to a subscriber go: nobody else may listen there."""
    return f"_INBOX_{consumer}"
