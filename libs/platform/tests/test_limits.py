"""One caller cannot take a service from the others, and nobody chooses the address that is written down."""

import time
from typing import Any

import pytest

from stellwerk_platform.addresses import METADATA_KEY, address_of
from stellwerk_platform.auth import Caller, bearer
from stellwerk_platform.errors import ResourceExhausted, Unauthenticated
from stellwerk_platform.limits import Limits


def caller(role: str = "User", subject: str = "users/alice") -> Caller:
    return Caller(subject, role, time.time() + 60)


def test_a_caller_has_so_many_calls_and_others_are_not_held_up() -> None:
    limits = Limits(calls=2, streams=1)
    with limits.one_more(caller(), False), limits.one_more(caller(), False):
        with pytest.raises(ResourceExhausted, match="2 calls"), limits.one_more(caller(), False):
            pass
        with limits.one_more(caller(), True), limits.one_more(caller(subject="users/bob"), False):
            pass
        with (
            pytest.raises(ResourceExhausted),
            limits.one_more(caller(), True),
            limits.one_more(caller(), True),
        ):
            pass
    with limits.one_more(caller(), False), limits.one_more(caller(), False):
        pass


def test_services_are_not_counted() -> None:
    limits = Limits(calls=0, streams=0)
    with limits.one_more(caller("Service", "services/gateway"), False), limits.one_more(None, True):
        pass


class Context:
    """What gRPC knows of a call."""

    def __init__(self, names: tuple[bytes, ...] = (), peer: str = "ipv4:10.0.0.9:4711") -> None:
        self._names = names
        self._peer = peer

    def auth_context(self) -> dict[str, Any]:
        return {"x509_subject_alternative_name": self._names}

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ((METADATA_KEY, "192.0.2.1"),)

    def peer(self) -> str:
        return self._peer


def test_only_the_gateway_says_where_a_call_came_from() -> None:
    assert address_of(Context((b"gateway.stellwerk", b"localhost"))) == "192.0.2.1"
    assert address_of(Context((b"runs.stellwerk", b"localhost"))) == "10.0.0.9"
    assert address_of(Context()) == "10.0.0.9"
    assert address_of(Context(peer="ipv6:%5B::1%5D:4711")) == "::1"
    assert address_of(Context(peer="unix:")) == ""


def test_an_endless_key_is_not_looked_at() -> None:
    with pytest.raises(Unauthenticated):
        bearer([("authorization", "Bearer " + "x" * 10_000)])
