"""What compute does when a service wants a workload placed or stopped.

Any resource with a field `workload` will do: nothing here knows what a run is.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from google.protobuf import json_format

from stellwerk_compute.agents.session import Sessions
from stellwerk_compute.allocations import domain
from stellwerk_compute.allocations.store import AllocationStore, Beside
from stellwerk_compute.computes.domain import pool_of
from stellwerk_compute.computes.store import ComputeStore
from stellwerk_platform.errors import InvalidArgument, NotFound
from stellwerk_platform.journal import Event, Fact
from stellwerk_protos.common.v1 import common_pb2
from stellwerk_protos.compute.v1 import agents_pb2, computes_pb2, workloads_pb2

CREATED = ("runs.run.created", "inference.replica.created")
STOPPED = ("runs.run.cancel_requested", "inference.replica.deleting")


@dataclass(frozen=True)
class WorkloadEvents:
    """The handler of both kinds of event; one consumer, so that a stop never overtakes its start."""

    allocations: AllocationStore
    computes: ComputeStore
    sessions: Sessions
    wake: Callable[[], None]

    async def handle(self, event: Event) -> None:
        """Handles an event; again, nothing changes."""
        if event.verb == "created":
            await self._create(event)
        else:
            await self._stop(event)

    async def _create(self, event: Event) -> None:
        workload = json_format.ParseDict(
            event.data.get("workload", {}), workloads_pb2.Workload(), ignore_unknown_fields=True
        )
        if workload.kind == workloads_pb2.WORKLOAD_KIND_UNSPECIFIED:
            return  # it runs where it was started, and needs no place
        if not await self.computes.is_open(event.resource):
            return
        allocation, fact = domain.new(event.resource, workload)
        pool = ""
        try:
            pool = pool_of(await self.computes.get(workload.compute))
        except (NotFound, InvalidArgument) as error:
            fact = _failed(allocation, error)
        beside = Beside(pool=pool, traceparent=event.traceparent)
        await self.allocations.create(allocation, replace(fact, cause=event.id), beside)
        self.wake()

    async def _stop(self, event: Event) -> None:
        reason = stop_reason(event)

        def change(allocation: computes_pb2.Allocation, beside: Beside) -> tuple[Fact | None, Beside]:
            fact = domain.cancel(allocation, reason, event.actor)
            if fact is None:
                return None, beside
            noted = replace(beside, cancel_code=reason.code, cancel_message=reason.message)
            return replace(fact, cause=event.id), noted

        try:
            allocation = await self.allocations.change(domain.name_for(event.resource), change)
        except NotFound:
            return  # it was never placed
        if allocation.state not in domain.TERMINAL:
            message = agents_pb2.Cancellation(allocation=allocation.name, reason=reason)
            self.sessions.cancel(allocation.node, message)
        self.wake()


@dataclass(frozen=True)
class WorkspaceEvents:
    """The handler of new workspaces."""

    computes: ComputeStore

    async def handle(self, event: Event) -> None:
        """Gives a new workspace its local compute."""
        if await self.computes.is_open(event.resource):
            await self.computes.ensure_local(event.resource.split("/")[1], cause=event.id)


def stop_reason(event: Event) -> common_pb2.Reason:
    """Who asked to stop, and why."""
    code = event.reason.get("code") or "CANCEL_REQUESTED"
    return common_pb2.Reason(code=code, message=event.reason.get("message") or f"Canceled by {event.actor}.")


def _failed(allocation: computes_pb2.Allocation, error: NotFound | InvalidArgument) -> Fact:
    reason = common_pb2.Reason(code=error.reason, message=error.message, cure=error.cure)
    fact = domain.fail(allocation, reason)
    assert fact is not None, "a new allocation is not at its end"
    return fact
