"""How NATS lets event subscribers in: an account of their own, and `secrets` says who they are.

In the platform's account a subscriber could name a subject of the platform as the place for an
answer, and JetStream would publish there in its own name (docs/decisions/080). From an account of
its own it reaches what is led across, and answers come back into that account only.
"""

from collections.abc import Iterable
from typing import Any

ACCOUNT = "SUBSCRIBERS"
PLATFORM = "APP"
SYSTEM = "SYS"
# A server waits so long for `secrets`.
_CALLOUT_SECONDS = 3
_LIST_CONNECTIONS = "$SYS.REQ.SERVER.PING.CONNZ"
_END_CONNECTION = "$SYS.REQ.SERVER.*.KICK"
# JetStream answers questions about a consumer in its own account only, so `secrets` answers them under
# a prefix of their own; clients that always ask (Go's) take it for all they say to JetStream.
_PREFIX = "SUBSCRIBER.API"


def accounts(namespace: str, journal: str, accounts: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The accounts with what subscribers need; `*` as namespace and journal stand for all of them."""
    led_across = [
        {"service": f"$JS.API.CONSUMER.MSG.NEXT.{journal}.*", "response_type": "stream"},
        {"service": f"$JS.ACK.{journal}.>"},
        {"service": f"{_PREFIX}.CONSUMER.INFO.{journal}.*"},
        {"stream": f"{namespace}.journal.>"},
    ]
    operated = [{"service": _LIST_CONNECTIONS, "response_type": "stream"}, {"service": _END_CONNECTION}]
    platform, system = accounts[PLATFORM], accounts[SYSTEM]
    return accounts | {
        SYSTEM: system | {"exports": [item | {"accounts": [PLATFORM]} for item in operated]},
        PLATFORM: platform
        | {
            "exports": [item | {"accounts": [ACCOUNT]} for item in led_across],
            "imports": [_service(SYSTEM, str(item["service"])) for item in operated],
        },
        ACCOUNT: {
            "imports": [
                _service(PLATFORM, f"$JS.API.CONSUMER.MSG.NEXT.{journal}.*"),
                _service(
                    PLATFORM,
                    f"$JS.API.CONSUMER.MSG.NEXT.{journal}.*",
                    f"{_PREFIX}.CONSUMER.MSG.NEXT.{journal}.*",
                ),
                _service(PLATFORM, f"{_PREFIX}.CONSUMER.INFO.{journal}.*"),
                _service(PLATFORM, f"$JS.ACK.{journal}.>"),
                {"stream": {"account": PLATFORM, "subject": f"{namespace}.journal.>"}},
            ]
        },
    }


def authorization(issuer: str, users: Iterable[str]) -> dict[str, Any]:
    """Who is asked about everybody but `users`, by name or public key; answers are signed by `issuer`."""
    callout = {"issuer": issuer, "account": PLATFORM, "auth_users": list(users)}
    return {"timeout": _CALLOUT_SECONDS, "auth_callout": callout}


def publishes() -> tuple[str, ...]:
    """What `secrets` may publish besides what every service may."""
    return (_LIST_CONNECTIONS, _END_CONNECTION)


def subscribes() -> tuple[str, ...]:
    """What `secrets` may subscribe to besides what every service may."""
    return ("$SYS.REQ.USER.AUTH", f"{_PREFIX}.CONSUMER.INFO.>")


def _service(account: str, subject: str, to: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {"service": {"account": account, "subject": subject}}
    return found | {"to": to} if to else found
