"""The gRPC face of `telemetry`; OTLP has its own in `traces/otlp.py`."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from stellwerk_platform.access import Guard
from stellwerk_platform.auth import current_caller
from stellwerk_platform.errors import NotFound
from stellwerk_platform.roles import SERVICE
from stellwerk_protos.telemetry.v1 import telemetry_pb2 as pb
from stellwerk_protos.telemetry.v1 import telemetry_pb2_grpc
from stellwerk_telemetry.dead_letters.store import DeadLetters
from stellwerk_telemetry.events import domain as events_domain
from stellwerk_telemetry.events.store import Events
from stellwerk_telemetry.events.watch import Journal
from stellwerk_telemetry.explain.collect import explain
from stellwerk_telemetry.traces import domain as traces_domain
from stellwerk_telemetry.traces.store import Spans
from stellwerk_telemetry.workspaces import Workspaces

# A trace must fit into one answer (16 MiB).
_SPANS_LIMIT = 10_000
_TRACE_LIMIT_BYTES = 12 * 1024 * 1024


def _no_trace(trace_id: str) -> NotFound:
    return NotFound(
        "TRACE_NOT_FOUND",
        f"No span of a call of yours with the trace {trace_id} has arrived.",
        "Try again in a moment; spans are kept for some days only.",
    )


class TelemetryService(telemetry_pb2_grpc.TelemetryServiceServicer):
    """telemetry.proto."""

    def __init__(
        self,
        spans: Spans,
        events: Events,
        journal: Journal,
        dead_letters: DeadLetters,
        workspaces: Workspaces,
        guard: Guard,
    ) -> None:
        self._guard = guard
        self._spans = spans
        self._events = events
        self._journal = journal
        self._dead_letters = dead_letters
        self._workspaces = workspaces

    async def GetTrace(self, request: pb.GetTraceRequest, context: Any) -> pb.Trace:
        trace = pb.Trace(trace_id=traces_domain.check_trace_id(request.trace_id))
        size_bytes = 0
        if not await self._may_see(trace.trace_id):
            raise _no_trace(trace.trace_id)
        for document in await self._spans.of_trace(trace.trace_id, _SPANS_LIMIT):
            span = traces_domain.to_proto(document)
            size_bytes += span.ByteSize()
            if size_bytes > _TRACE_LIMIT_BYTES:
                break
            trace.spans.append(span)
        if not trace.spans:
            raise _no_trace(trace.trace_id)
        return trace

    async def _may_see(self, trace_id: str) -> bool:
        """Whether the caller may read every workspace in which the call has changed something.

        Calls that have changed nothing are for administrators.
        """
        caller = current_caller()
        if caller.role == SERVICE:
            return True
        workspaces = [workspace for workspace in await self._events.workspaces_of(trace_id) if workspace]
        for workspace in workspaces:
            if not await self._guard.may(caller, "event.read", f"workspaces/{workspace}"):
                return False
        return bool(workspaces) or caller.administrator

    async def ListEvents(self, request: pb.ListEventsRequest, context: Any) -> pb.ListEventsResponse:
        workspace = events_domain.check_parent(request.parent)
        trace_id = request.trace_id and traces_domain.check_trace_id(request.trace_id)
        resource = events_domain.check_resource(request.resource)
        await self._workspaces.check(workspace)
        events, token = await self._events.page(
            workspace,
            resource,
            trace_id,
            request.page_size,
            request.page_token,
            start=await self._start(request),
            newest_first=request.newest_first,
        )
        return pb.ListEventsResponse(events=events, next_page_token=token)

    async def Explain(self, request: pb.ExplainRequest, context: Any) -> pb.Explanation:
        return await explain(self._events, request.name)

    async def WatchEvents(self, request: pb.WatchEventsRequest, context: Any) -> AsyncIterator[pb.Event]:
        workspace = events_domain.check_parent(request.parent)
        wanted = events_domain.check_selection(request.type, request.resource)
        await self._workspaces.check(workspace)
        start = await self._start(request) or await self._journal.next_sequence()
        # The client knows now from where on it misses nothing.
        await context.send_initial_metadata((("stellwerk-start-sequence", str(start)),))
        async with aclosing(self._journal.watch(workspace, start)) as events:
            async for event in events:
                if wanted(event):
                    yield event

    async def _start(self, request: pb.ListEventsRequest | pb.WatchEventsRequest) -> int:
        """The first sequence that is wanted; 0 when the request says nothing."""
        start = events_domain.check_sequence(request.start_sequence)
        if not start and request.HasField("start_time"):
            return await self._journal.sequence_since(events_domain.check_time(request.start_time))
        return start

    async def ListDeadLetters(
        self, request: pb.ListDeadLettersRequest, context: Any
    ) -> pb.ListDeadLettersResponse:
        letters, token = await self._dead_letters.page(request.page_size, request.page_token)
        return pb.ListDeadLettersResponse(dead_letters=letters, next_page_token=token)

    async def ReplayDeadLetter(
        self, request: pb.ReplayDeadLetterRequest, context: Any
    ) -> pb.ReplayDeadLetterResponse:
        await self._dead_letters.replay(request.sequence)
        return pb.ReplayDeadLetterResponse()
