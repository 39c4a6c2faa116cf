# Generated from ../_async/events.py by scripts/generate_sync.py; do not edit.
"""The journal: every transition of every resource."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime

from stellwerk import names
from stellwerk._sync.core import Core
from stellwerk.errors import invalid
from stellwerk_protos.telemetry.v1 import telemetry_pb2, telemetry_pb2_grpc


class Events:
    """The events of a workspace."""

    def __init__(self, core: Core, parent: str) -> None:
        self._core, self._parent = core, parent
        self._stub = telemetry_pb2_grpc.TelemetryServiceStub(core.channel)

    def list(
        self,
        *,
        resource: str = "",
        trace_id: str = "",
        since: int | datetime = 0,
        limit: int | None = None,
        newest: bool = False,
    ) -> Sequence[telemetry_pb2.Event]:
        """Events, oldest first: all, or those of one resource (`runs/abc`) or trace.

        From a sequence or a time on; of more than `limit` the oldest, or with `newest` the newest ones.
        """
        request = telemetry_pb2.ListEventsRequest(
            parent=self._parent,
            resource=self._resource(resource),
            trace_id=trace_id,
            newest_first=newest,
        )
        _start(request, since)
        pages = self._core.pages(self._stub.ListEvents, request, limit)
        events = [event for page in pages for event in page.events]
        return events[::-1] if newest else events

    def watch(
        self,
        *,
        since: int | datetime = 0,
        type: str = "",
        resource: str = "",
        on_start: Callable[[int], None] | None = None,
    ) -> Iterator[telemetry_pb2.Event]:
        """Events as they come, from a sequence or a time on (0: from now on), until the caller stops.

        `type` is a pattern (`stellwerk.runs.*`); `resource` keeps one resource and what lies below it.
        Restarts of the platform make neither gap nor repetition. `on_start` gets the first sequence that
        is watched for: whoever remembers it misses nothing, even when no event comes.
        """
        request = telemetry_pb2.WatchEventsRequest(
            parent=self._parent, type=type, resource=self._resource(resource)
        )
        _start(request, since)

        def started(metadata: Mapping[str, str]) -> None:
            first = not request.start_sequence or request.HasField("start_time")
            request.start_sequence = int(metadata.get("stellwerk-start-sequence", request.start_sequence))
            request.ClearField("start_time")
            if on_start is not None and first:
                on_start(request.start_sequence)

        for event in self._core.stream(self._stub.WatchEvents, request, started):
            request.start_sequence = event.sequence + 1
            yield event

    def _resource(self, name: str) -> str:
        if not name or name == self._parent:
            return name
        if name.count("/") % 2 == 0 or not all(name.split("/")):
            raise invalid(
                "INVALID_NAME",
                f"{name[:200]!r} is not the name of a resource.",
                "Write it with its collection, for example runs/RUN or endpoints/ENDPOINT/deployments/NAME.",
            )
        collection, _, rest = name.partition("/")
        if name.startswith("workspaces/"):
            return name
        return names.resource(self._parent, collection, rest)


def _start(
    request: telemetry_pb2.ListEventsRequest | telemetry_pb2.WatchEventsRequest, since: int | datetime
) -> None:
    if isinstance(since, int):
        request.start_sequence = since
    else:
        request.start_time.FromDatetime(since.astimezone(UTC))
