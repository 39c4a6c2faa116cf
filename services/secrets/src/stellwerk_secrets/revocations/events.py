"""Consumes the ends of runs, replicas and endpoints: their tokens end with them."""

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from stellwerk_platform.bus import Bus
from stellwerk_platform.journal import Event, Fact
from stellwerk_secrets.domain import WORKLOAD_TOKEN_SECONDS
from stellwerk_secrets.revocations.store import Revocations

DURABLE = "secrets-revocations"
TYPES = [
    *(f"runs.run.{verb}" for verb in ("completed", "failed", "canceled")),
    *(f"inference.{kind}.{verb}" for kind in ("replica", "endpoint") for verb in ("failed", "deleted")),
]


class EndedWorkloads:
    """The consumer."""

    def __init__(self, bus: Bus, revocations: Revocations) -> None:
        self._bus = bus
        self._revocations = revocations

    async def run(self) -> None:
        """Consumes for ever."""
        await self._bus.consume(DURABLE, TYPES, self.handle)

    async def handle(self, event: Event) -> None:
        """Revokes what was issued for the resource; events that are older than any token are passed over."""
        ended = Timestamp()
        ended.FromJsonString(event.data["updateTime"])
        moment = ended.ToDatetime(UTC)
        if (datetime.now(UTC) - moment).total_seconds() > WORKLOAD_TOKEN_SECONDS:
            return
        if not event.type.startswith("stellwerk.inference.endpoint."):
            # Its name never comes back; that of an endpoint may, and with it tokens that are good.
            moment = max(moment, datetime.now(UTC))
        fact = Fact("created", "WORKLOAD_ENDED", f"{event.resource} has {event.verb}.", cause=event.id)
        await self._revocations.revoke_once(event.id, event.resource, moment, WORKLOAD_TOKEN_SECONDS, fact)
