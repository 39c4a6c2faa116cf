"""What this node holds: one worker an allocation."""

import asyncio
import logging
from collections import OrderedDict
from pathlib import Path

from stellwerk_agent.connection import Connection
from stellwerk_agent.failure import StepFailed, reason_of
from stellwerk_agent.folder import AllocationFolder, discard
from stellwerk_agent.node import Node
from stellwerk_agent.replica import ReplicaWorker
from stellwerk_agent.run import RunWorker
from stellwerk_agent.worker import Worker
from stellwerk_protos.common.v1 import common_pb2
from stellwerk_protos.compute.v1 import agents_pb2, agents_pb2_grpc, computes_pb2, workloads_pb2

log = logging.getLogger(__name__)
_KINDS: dict[int, type[Worker]] = {
    workloads_pb2.WORKLOAD_KIND_RUN: RunWorker,
    workloads_pb2.WORKLOAD_KIND_REPLICA: ReplicaWorker,
}
_ASSIGNED = computes_pb2.ALLOCATION_STATE_ASSIGNED
_REMEMBERED = 10_000


class Agent:
    """Takes assignments, and gives each allocation back once compute has its last report."""

    def __init__(self, node: Node, stub: "agents_pb2_grpc.AgentServiceAsyncStub") -> None:
        self._node = node
        self._folder = node.settings.folder / "allocations"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._connection = Connection(stub, node.settings, self)
        self._workers: dict[str, Worker] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        # An assignment that was on its way when its allocation ended must not start it anew.
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._discarding: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """For ever; when cancelled, commands live on."""
        for path in AllocationFolder.leftovers(self._folder):
            self._discard(path)
        for folder in AllocationFolder.load_all(self._folder):
            log.info("%s is taken up again", folder.allocation.name)
            self._hold(folder)
        try:
            await self._connection.run()
        finally:
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, *self._discarding, return_exceptions=True)

    def _hold(self, folder: AllocationFolder) -> None:
        name = folder.allocation.name
        worker = _KINDS[folder.allocation.workload.kind](self._node, folder, self._connection.send)
        self._workers[name] = worker
        task = asyncio.create_task(worker.run(), name=name)
        task.add_done_callback(self._worker_ended)
        self._tasks[name] = task

    def _worker_ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("%s has no worker any more", task.get_name(), exc_info=error)
        self._settle(task.get_name())

    def _settle(self, name: str) -> None:
        """Lets go of an allocation that is over and fully acknowledged."""
        worker = self._workers.get(name)
        if worker is None or not worker.is_over or worker.folder.unacknowledged():
            return
        del self._workers[name], self._tasks[name]
        self._ended[_identity(worker.folder.allocation)] = None
        if len(self._ended) > _REMEMBERED:
            self._ended.popitem(last=False)
        self._discard(worker.folder.retire())

    def _discard(self, path: Path) -> None:
        """In a thread: a large folder must not hold up the leases."""
        task = asyncio.create_task(asyncio.to_thread(discard, path))
        self._discarding.add(task)
        task.add_done_callback(self._discarding.discard)

    def held(self) -> list[str]:
        """Allocations that this node holds."""
        return list(self._workers)

    async def cpu_seconds(self) -> dict[str, float]:
        """What each of them has used so far."""
        living = [(name, worker) for name, worker in self._workers.items() if not worker.is_over]
        return await asyncio.to_thread(lambda: {name: worker.cpu_seconds() for name, worker in living})

    def unacknowledged(self) -> list[agents_pb2.Report]:
        """Reports that compute may not have, in order."""
        return [report for worker in self._workers.values() for report in worker.folder.unacknowledged()]

    def assign(self, assignment: agents_pb2.Assignment) -> None:
        """Takes work; for what it holds already, the new token."""
        name = assignment.allocation.name
        if (worker := self._workers.get(name)) is not None:
            worker.take_token(assignment.token)
        elif _identity(assignment.allocation) not in self._ended and assignment.allocation.state == _ASSIGNED:
            log.info("%s is assigned", name)
            self._take(assignment)

    def _take(self, assignment: agents_pb2.Assignment) -> None:
        try:
            if assignment.allocation.workload.kind not in _KINDS:
                raise StepFailed("WORKLOAD_UNKNOWN", "The agent knows no such kind.", "Update the agent.")
            folder = AllocationFolder.create(self._folder, assignment)
        except Exception as error:
            log.exception("%s cannot be taken", assignment.allocation.name)
            # Nothing is held; if this is lost, compute assigns it again.
            refusal = agents_pb2.Report(allocation=assignment.allocation.name, sequence=1)
            refusal.state = computes_pb2.ALLOCATION_STATE_FAILED
            refusal.reason.CopyFrom(reason_of(error))
            self._connection.send(refusal)
            return
        if assignment.allocation.cancel_requested:
            # Compute's cancellation came before there was anything to cancel.
            folder.request_stop(common_pb2.Reason(code="CANCEL_REQUESTED", message="It never started."))
        self._hold(folder)

    def cancel(self, cancellation: agents_pb2.Cancellation) -> None:
        """Stops an allocation; nothing happens to one that is over."""
        worker = self._workers.get(cancellation.allocation)
        if worker is not None and not worker.is_over:
            worker.stop(cancellation.reason)

    def acknowledge(self, ack: agents_pb2.ReportAck) -> None:
        """Forgets a report that compute has stored."""
        if (worker := self._workers.get(ack.allocation)) is not None:
            worker.folder.acknowledge(ack.sequence)
            self._settle(ack.allocation)


def _identity(allocation: computes_pb2.Allocation) -> str:
    """A run in a workspace that was deleted and made again may have an allocation of the same name."""
    return f"{allocation.name}@{allocation.create_time.ToMilliseconds()}"
