"""What inference hears from compute: where the allocations of its replicas are."""

from stellwerk_inference.lifecycle import Lifecycle
from stellwerk_inference.replicas import domain
from stellwerk_platform.errors import NotFound
from stellwerk_platform.journal import Event
from stellwerk_protos.compute.v1 import computes_pb2

CONSUMER = "inference-allocations"
CONSUMED = ("compute.allocation.*",)


class AllocationEvents:
    """The handler."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle

    async def handle(self, event: Event) -> None:
        """Makes the replica follow its allocation; again, nothing changes."""
        if not domain.is_replica(str(event.data.get("owner", ""))):
            return
        allocation = computes_pb2.Allocation()
        event.load(allocation)
        # The journal's count is the one that every event has.
        allocation.revision = event.revision
        try:
            await self._lifecycle.move_replica(
                allocation.owner, lambda replica: domain.follow(replica, allocation), cause=event.id
            )
        except NotFound:
            return  # a replica of a database that is no more
