"""The placement rule: first come, first served, onto the least loaded node of the pool."""

from collections.abc import Iterable
from dataclasses import dataclass

from stellwerk_protos.common.v1 import common_pb2


@dataclass(frozen=True)
class Waiting:
    """A queued allocation. Runs take a slot, replicas do not."""

    name: str
    pool: str
    takes_slot: bool
    reason_code: str


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


def plan(waiting: Iterable[Waiting], nodes: Iterable[Node]) -> list[Decision]:
    """Decisions in the order of the queue; none for one whose reason to wait stays the same."""
    decisions = []
    pools: dict[str, list[Node]] = {}
    for node in nodes:
        pools.setdefault(node.pool, []).append(node)
    for item in waiting:
        pool = pools.get(item.pool, [])
        candidates = [node for node in pool if node.used < node.slots or not item.takes_slot]
        if candidates:
            chosen = min(candidates, key=lambda node: (node.used, node.placed, node.name))
            chosen.used += item.takes_slot
            chosen.placed += 1
            decisions.append(Decision(item.name, node=chosen.name))
        else:
            reason = _full(item.pool, pool) if pool else _empty(item.pool)
            if reason.code != item.reason_code:
                decisions.append(Decision(item.name, reason=reason))
    return decisions


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
