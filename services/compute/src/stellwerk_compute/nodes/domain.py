"""Rules of nodes."""

from stellwerk_platform import names
from stellwerk_platform.errors import InvalidArgument
from stellwerk_platform.journal import Fact
from stellwerk_protos.common.v1 import common_pb2
from stellwerk_protos.compute.v1 import agents_pb2, computes_pb2

PATTERN = "nodes/*"
_READY = common_pb2.Reason(code="AGENT_CONNECTED", message="The agent has announced itself.")


def check(announcement: agents_pb2.Announcement) -> None:
    """Raises `InvalidArgument` for an announcement that makes no node."""
    names.parse(PATTERN, announcement.node)
    names.check_id("pools", announcement.pool)
    if announcement.slots < 1:
        raise InvalidArgument(
            "INVALID_SLOTS", f"A node with {announcement.slots} slots takes no run.", "Give 1 slot or more."
        )


def announce(node: computes_pb2.Node, announcement: agents_pb2.Announcement) -> Fact | None:
    """The node as its agent describes it; None when nothing is new."""
    before = computes_pb2.Node()
    before.CopyFrom(node)
    node.pool, node.slots = announcement.pool, announcement.slots
    node.state = computes_pb2.NODE_STATE_READY
    node.reason.CopyFrom(_READY)
    return None if node == before else Fact("ready", _READY.code, _READY.message)


def expire(node: computes_pb2.Node, lease_seconds: float) -> Fact | None:
    """The node after its lease ran out."""
    if node.state == computes_pb2.NODE_STATE_NOT_RESPONDING:
        return None
    node.state = computes_pb2.NODE_STATE_NOT_RESPONDING
    node.reason.CopyFrom(
        common_pb2.Reason(
            code="LEASE_EXPIRED",
            message=f"The agent has not been heard of for {lease_seconds:g} s.",
            cure="See whether the machine and the agent on it still run.",
        )
    )
    return Fact("not_responding", node.reason.code, node.reason.message)
