"""The names of roles as people write them."""

from typing import TYPE_CHECKING

from stellwerk.errors import invalid

if TYPE_CHECKING:
    from stellwerk_protos.registry.v1 import members_pb2

ROLES = ("owner", "contributor", "data-scientist", "compute-operator", "reader")


def role_of(role: str) -> "members_pb2.Role.ValueType":
    """ROLE_DATA_SCIENTIST for "data-scientist" or "DataScientist"; raises `StellwerkError`."""
    from stellwerk_protos.registry.v1 import members_pb2

    wanted = role.replace("-", "").replace("_", "").lower()
    for known in ROLES:
        if wanted == known.replace("-", ""):
            return members_pb2.Role.Value(f"ROLE_{known.upper().replace('-', '_')}")
    raise invalid("INVALID_ROLE", f"There is no role {role!r}.", f"Use {', '.join(ROLES)}.")


def role_name(role: "members_pb2.Role.ValueType") -> str:
    """ "data-scientist" for ROLE_DATA_SCIENTIST; "" for none."""
    from stellwerk_protos.registry.v1 import members_pb2

    return members_pb2.Role.Name(role).removeprefix("ROLE_").lower().replace("_", "-") if role else ""
