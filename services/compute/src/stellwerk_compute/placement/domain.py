"""The placement rule: first come, first served within the limits of each workspace, onto the least
loaded node of the pool."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from stellwerk_protos.common.v1 import common_pb2


@dataclass(frozen=True)
class Waiting:
    """A queued allocation of `workspaces/demo`. Runs take a slot, replicas do not."""

    name: str
    pool: str
    takes_slot: bool
    reason_code: str
    workspace: str = ""
    cores: int = 1


@dataclass(frozen=True)
class Placed:
    """An allocation that lives on a node."""

    workspace: str
    node: str
    takes_slot: bool
    cores: int


@dataclass(frozen=True)
class Limits:
    """What a workspace may have at one time; 0 is no limit."""

    nodes: int = 0
    cores: int = 0


@dataclass
class Node:
    """A ready node; `used` counts the runs on it and `placed` all that this plan puts there."""

    name: str
    pool: str
    slots: int
    used: int = 0
    placed: int = 0


@dataclass(frozen=True)
class Decision:
    """Where an allocation goes, or what it waits for."""

    name: str
    node: str = ""
    reason: common_pb2.Reason | None = None


@dataclass
class _Use:
    """What a workspace has."""

    nodes: set[str] = field(default_factory=set)
    cores: int = 0


def plan(
    waiting: Iterable[Waiting],
    nodes: Iterable[Node],
    placed: Iterable[Placed] = (),
    limits: Mapping[str, Limits] | None = None,
) -> list[Decision]:
    """Decisions in the order of the queue; none for one whose reason to wait stays the same.

    What a limit holds back keeps nobody else from being placed.
    """
    decisions = []
    pools: dict[str, list[Node]] = {}
    for node in nodes:
        pools.setdefault(node.pool, []).append(node)
    uses = _uses(placed)
    for item in waiting:
        use = uses.setdefault(item.workspace, _Use())
        chosen = _choose(item, pools.get(item.pool, []), use, (limits or {}).get(item.workspace, Limits()))
        if isinstance(chosen, Node):
            chosen.used += item.takes_slot
            chosen.placed += 1
            use.nodes.add(chosen.name)
            use.cores += item.cores
            decisions.append(Decision(item.name, node=chosen.name))
        elif chosen.code != item.reason_code:
            decisions.append(Decision(item.name, reason=chosen))
    return decisions


def _uses(placed: Iterable[Placed]) -> dict[str, _Use]:
    uses: dict[str, _Use] = {}
    for item in placed:
        use = uses.setdefault(item.workspace, _Use())
        use.nodes.add(item.node)
        use.cores += item.cores
    return uses


def _choose(item: Waiting, pool: list[Node], use: _Use, limits: Limits) -> Node | common_pb2.Reason:
    """The node, or what is waited for."""
    if limits.cores and use.cores + item.cores > limits.cores:
        return _over("QUOTA_CORES", "cores", limits.cores, use.cores, item.cores)
    if not pool:
        return _empty(item.pool)
    candidates = [node for node in pool if node.used < node.slots or not item.takes_slot]
    if not candidates:
        return _full(item.pool, pool)
    if limits.nodes and len(use.nodes) >= limits.nodes:
        candidates = [node for node in candidates if node.name in use.nodes]
        if not candidates:
            return _over("QUOTA_NODES", "nodes", limits.nodes, len(use.nodes), 1)
    return min(candidates, key=lambda node: (node.used, node.placed, node.name))


def _over(code: str, what: str, limit: int, used: int, wanted: int) -> common_pb2.Reason:
    fits = wanted <= limit
    ends = "It starts when something of the workspace ends." if fits else "It never fits."
    return common_pb2.Reason(
        code=code,
        message=f"The workspace may use {limit} {what} at a time; {used} are used and {wanted} more wanted. "
        + ends,
        cure=f"Wait, cancel something, or have the limit raised: `stellwerk quota set --{what} N`.",
    )


def _full(pool: str, nodes: list[Node]) -> common_pb2.Reason:
    slots = sum(node.slots for node in nodes)
    return common_pb2.Reason(
        code="WAITING_FOR_SLOT", message=f"All {slots} slots of pool {pool!r} are taken; it starts in turn."
    )


def _empty(pool: str) -> common_pb2.Reason:
    return common_pb2.Reason(
        code="NO_NODE",
        message=f"No node of pool {pool!r} is connected.",
        cure="See whether the agent runs: `stellwerk status` and `stellwerk logs agent`.",
    )
