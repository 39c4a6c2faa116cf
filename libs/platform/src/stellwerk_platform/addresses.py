"""Where a call came from: the client's address as the gateway saw it, or the peer's."""

from typing import Any

# What the gateway passes on; from anybody else it is not believed.
METADATA_KEY = "stellwerk-client-address"
_GATEWAY = b"gateway.stellwerk"
_CHARACTERS = 64


def address_of(context: Any) -> str:
    """The address of the client behind an RPC, without its port; "" when it has none."""
    if _GATEWAY in context.auth_context().get("x509_subject_alternative_name", ()):
        for key, value in context.invocation_metadata() or ():
            if key == METADATA_KEY and isinstance(value, str):
                return value[:_CHARACTERS]
    return address_of_peer(context.peer())


def is_forwarded(context: Any) -> bool:
    """Whether a call says that it came through a door of the gateway, as all do that it forwards."""
    return any(key == METADATA_KEY for key, _ in context.invocation_metadata() or ())


def address_of_peer(peer: str) -> str:
    """`10.0.0.7` of `ipv4:10.0.0.7:4711`, `::1` of `ipv6:%5B::1%5D:4711`; "" for what is no IP address."""
    kind, _, place = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return ""
    return place.rpartition(":")[0].removeprefix("%5B").removesuffix("%5D").strip("[]")
