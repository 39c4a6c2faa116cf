"""What a node holds against what it should hold."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from stellwerk_compute.agents.session import Session
from stellwerk_compute.allocations import domain
from stellwerk_compute.allocations.store import AllocationStore, Beside, Change, Held
from stellwerk_platform.journal import Fact
from stellwerk_protos.common.v1 import common_pb2
from stellwerk_protos.compute.v1 import agents_pb2, computes_pb2

# What a heartbeat must have to say so that it is worth a write.
_LEAST_CPU_SECONDS = 1.0
_UNKNOWN = common_pb2.Reason(code="NOT_ASSIGNED", message="The allocation is not this node's any more.")


class Reconciler:
    """Brings both sides together at each announcement and each heartbeat."""

    def __init__(self, allocations: AllocationStore, wake: Callable[[], None]) -> None:
        self._allocations = allocations
        self._wake = wake

    async def announced(self, session: Session, held: set[str]) -> None:
        """After a connection began: every live allocation is sent again, with a new token.

        But not one that was placed, and so sent, since the node announced itself: it would come twice.
        """
        for item in await self._settle(session, held):
            session.want_once(item.allocation.name)

    async def beat(self, session: Session, held: set[str], cpu_seconds: Mapping[str, float]) -> None:
        """At a heartbeat: sends what the node does not have, and new tokens before the old ones end."""
        for item in await self._settle(session, held):
            name = item.allocation.name
            said = cpu_seconds.get(name, 0.0)
            if said >= item.beside.cpu_seconds + _LEAST_CPU_SECONDS:
                await self._allocations.change(name, used(session.node, said))
            renew_time = session.token_renew_times.get(name)
            if name not in held or renew_time is None or renew_time < time.time():
                session.want(name)

    async def _settle(self, session: Session, held: set[str]) -> list[Held]:
        """Restores, loses and cancels; returns what the node has to hold."""
        expected = await self._allocations.on_node(session.node)
        for name in held - {item.allocation.name for item in expected}:
            _cancel(session, name, _UNKNOWN)
        remaining = []
        for item in expected:
            name = item.allocation.name
            # What was sent on this connection and is not held yet is on its way: queued again, it could
            # start on two nodes.
            is_there = name in held or name in session.token_renew_times
            allocation = await self._settle_one(item, name in held, is_there)
            if allocation.node != session.node or allocation.state in domain.TERMINAL:
                # Placed here once more, it is to be sent once more.
                session.token_renew_times.pop(name, None)
                self._wake()
                continue
            remaining.append(item)
            if allocation.cancel_requested:
                # An unstarted one goes first, so that there is something to cancel.
                if name not in held:
                    session.want(name)
                _cancel(session, name, item.beside.cancel_reason)
        return remaining

    async def _settle_one(self, item: Held, is_held: bool, is_there: bool) -> computes_pb2.Allocation:
        state = item.allocation.state
        if state == domain.ASSIGNED or (is_held and state != domain.NOT_RESPONDING):
            return item.allocation

        def change(allocation: computes_pb2.Allocation, beside: Beside) -> tuple[Fact | None, Beside]:
            earlier = computes_pb2.AllocationState.ValueType(beside.earlier_state)
            returns = is_there if earlier == domain.ASSIGNED else is_held
            settle = domain.restore if returns else domain.lose
            return settle(allocation, earlier), beside

        return await self._allocations.change(item.allocation.name, change)

    @staticmethod
    def reported(node: str, report: agents_pb2.Report) -> Change:
        """The change that a report makes, once: a repeated or overtaken one makes none."""

        def change(allocation: computes_pb2.Allocation, beside: Beside) -> tuple[Fact | None, Beside]:
            # Another node's numbers would hide this one's.
            if allocation.node != node or report.sequence <= beside.report_sequence:
                return None, beside
            fact = domain.report(allocation, node, report)
            used = domain.cpu_seconds(report.cpu_seconds, beside.cpu_seconds)
            return fact, replace(beside, report_sequence=report.sequence, cpu_seconds=used)

        return change


def used(node: str, cpu_seconds: float) -> Change:
    """The change that a heartbeat makes to what is known of an allocation's use of CPU."""

    def change(allocation: computes_pb2.Allocation, beside: Beside) -> tuple[Fact | None, Beside]:
        if allocation.node != node or allocation.state in domain.TERMINAL:
            return None, beside
        return None, replace(beside, cpu_seconds=domain.cpu_seconds(cpu_seconds, beside.cpu_seconds))

    return change


def _cancel(session: Session, name: str, reason: common_pb2.Reason) -> None:
    cancellation = agents_pb2.Cancellation(allocation=name, reason=reason)
    session.send(agents_pb2.ConnectResponse(cancellation=cancellation))
