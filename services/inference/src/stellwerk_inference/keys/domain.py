"""The two keys of an endpoint: random, shown once, known afterwards by digest and last characters.

A key has 256 random bits, so a plain SHA-256 cannot be searched, and a gateway can afford it
on every request.
"""

import hashlib
import secrets

from google.protobuf.timestamp_pb2 import Timestamp

from stellwerk_inference.endpoints.domain import check_open, is_batch
from stellwerk_platform import names
from stellwerk_platform.errors import FailedPrecondition, InvalidArgument
from stellwerk_platform.journal import Fact
from stellwerk_protos.inference.v1 import endpoints_pb2 as pb
from stellwerk_protos.inference.v1 import keys_pb2

# Tells the keys of endpoints from those of people (`swk_`).
PREFIX = "swe_"
_RANDOM_BYTES = 32
_ENDING_CHARACTERS = 4
_WORDS = {keys_pb2.KEY_SLOT_PRIMARY: "primary", keys_pb2.KEY_SLOT_SECONDARY: "secondary"}
_MODES = {
    pb.AUTH_MODE_KEY: "its keys",
    pb.AUTH_MODE_TOKEN: "tokens and API keys of the platform",
    pb.AUTH_MODE_KEY_AND_TOKEN: "its keys, and tokens and API keys of the platform",
}


def generate() -> str:
    """A new key."""
    return PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def digest(key: str) -> bytes:
    """What is kept of a key: 32 bytes."""
    return hashlib.sha256(key.encode()).digest()


def word(slot: keys_pb2.KeySlot.ValueType) -> str:
    """`primary` or `secondary`; raises `InvalidArgument`."""
    if slot not in _WORDS:
        raise InvalidArgument(
            "INVALID_KEY_SLOT", "It is not said which key is meant.", "Say which of the two."
        )
    return _WORDS[slot]


def regenerate(endpoint: pb.Endpoint, which: str, key: str, now: Timestamp) -> Fact:
    """Notes on the endpoint that one of its keys is new; raises `FailedPrecondition`."""
    check_open(endpoint)
    if is_batch(endpoint):
        raise FailedPrecondition(
            "ENDPOINT_IS_BATCH",
            f"{names.id_of(endpoint.name)} is a batch endpoint: a key of its own would open nothing.",
            "Show an API key or token of the platform (`stellwerk key create`).",
        )
    hint = endpoint.primary_key if which == _WORDS[keys_pb2.KEY_SLOT_PRIMARY] else endpoint.secondary_key
    is_first = not hint.HasField("create_time")
    hint.ending = key[-_ENDING_CHARACTERS:]
    hint.create_time.CopyFrom(now)
    what = "made" if is_first else "made anew; the one before it is refused"
    return Fact("key_regenerated", "REQUESTED", f"The {which} key, which ends in {hint.ending}, is {what}.")


def set_auth_mode(endpoint: pb.Endpoint, mode: pb.AuthMode.ValueType) -> Fact | None:
    """Changes what callers may show; raises `InvalidArgument` or `FailedPrecondition`."""
    check_open(endpoint)
    check_auth_mode(mode)
    mode = mode or pb.AUTH_MODE_KEY_AND_TOKEN
    if endpoint.auth_mode == mode:
        return None
    endpoint.auth_mode = mode
    return Fact("auth_mode_changed", "REQUESTED", f"Callers may show {_MODES[mode]}.")


def check_auth_mode(mode: pb.AuthMode.ValueType) -> None:
    """Raises `InvalidArgument` for a number that stands for nothing."""
    if mode and mode not in _MODES:
        raise InvalidArgument(
            "INVALID_AUTH_MODE", f"There is no auth mode {mode}.", "Use key, token or both."
        )
