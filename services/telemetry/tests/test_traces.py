"""OTLP in, traces out."""

import asyncio
import time
from typing import Any

import grpc
import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import format_trace_id

from services.telemetry.tests.support import Telemetry, export_request, new_trace_id, reason_of, span, until
from stellwerk_protos.telemetry.v1 import telemetry_pb2 as pb
from stellwerk_protos.telemetry.v1.telemetry_pb2_grpc import TelemetryServiceStub
from stellwerk_telemetry.traces.buffer import SpanBuffer


async def trace_of(telemetry: Telemetry, trace_id: str, spans: int) -> pb.Trace:
    """The trace, once it has so many spans."""

    async def probe() -> pb.Trace | None:
        try:
            trace = await stub.GetTrace(pb.GetTraceRequest(trace_id=trace_id))
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            return None
        return trace if len(trace.spans) >= spans else None

    async with telemetry.stub() as stub:
        return await until(probe)


async def test_a_trace_is_read_in_order_and_repetition_adds_nothing(telemetry: Telemetry) -> None:
    trace_id, now = new_trace_id(), time.time_ns()
    async with telemetry.exporter() as export:
        for _ in range(2):
            answer = await export(export_request(span(trace_id, 2, now + 20), span(trace_id, 1, now + 10)))
            assert answer.partial_success.rejected_spans == 0
        await export(export_request(span(trace_id, 3, now), service="cli"))
    trace = await trace_of(telemetry, trace_id.hex(), 3)
    assert [found.name for found in trace.spans] == ["step 3", "step 1", "step 2"]
    assert [found.service for found in trace.spans] == ["cli", "runs", "runs"]


async def test_the_sdks_own_exporter_is_served(telemetry: Telemetry) -> None:
    exporter = OTLPSpanExporter(
        endpoint=f"http://{telemetry.address}",
        insecure=True,
        headers={"authorization": f"Bearer {telemetry.secrets.otlp_key}"},
    )
    provider = TracerProvider(resource=Resource.create({"service.name": "cli"}))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    with provider.get_tracer("test").start_as_current_span("outer") as outer:
        trace_id = format_trace_id(outer.get_span_context().trace_id)
        with provider.get_tracer("test").start_as_current_span("inner"):
            pass
    await asyncio.to_thread(provider.shutdown)
    outer_span, inner_span = (await trace_of(telemetry, trace_id, 2)).spans
    assert (outer_span.name, inner_span.parent_span_id) == ("outer", outer_span.span_id)


async def test_metrics_and_logs_are_accepted(telemetry: Telemetry) -> None:
    async with telemetry.channel(telemetry.secrets.otlp_key) as channel:
        metrics: Any = metrics_service_pb2_grpc.MetricsServiceStub(channel)  # type: ignore[no-untyped-call]
        await metrics.Export(metrics_service_pb2.ExportMetricsServiceRequest())
        logs: Any = logs_service_pb2_grpc.LogsServiceStub(channel)  # type: ignore[no-untyped-call]
        await logs.Export(logs_service_pb2.ExportLogsServiceRequest())


async def test_nobody_writes_without_a_key(telemetry: Telemetry) -> None:
    request = export_request(span(new_trace_id(), 1, 1))
    async with grpc.aio.insecure_channel(telemetry.address) as channel:
        stub: Any = TraceServiceStub(channel)  # type: ignore[no-untyped-call]
        assert await reason_of(stub.Export(request)) == "KEY_MISSING"
    async with telemetry.exporter("swk_wrong") as export:
        assert await reason_of(export(request)) == "KEY_INVALID"


async def test_the_writers_key_reads_nothing(telemetry: Telemetry) -> None:
    async with telemetry.channel(telemetry.secrets.otlp_key) as channel:
        request = pb.GetTraceRequest(trace_id="ab" * 16)
        assert await reason_of(TelemetryServiceStub(channel).GetTrace(request)) == "PERMISSION_DENIED"


async def test_unknown_and_impossible_traces(telemetry: Telemetry) -> None:
    async with telemetry.stub() as stub:
        request = pb.GetTraceRequest(trace_id=new_trace_id().hex())
        assert await reason_of(stub.GetTrace(request)) == "TRACE_NOT_FOUND"
        assert await reason_of(stub.GetTrace(pb.GetTraceRequest(trace_id="7"))) == "INVALID_TRACE_ID"


async def test_a_trace_is_for_who_may_read_what_it_has_changed(telemetry: Telemetry) -> None:
    """Not for whoever knows its id; a call that has changed nothing is for administrators."""
    trace_id, now = new_trace_id(), time.time_ns()
    async with telemetry.exporter() as export:
        await export(export_request(span(trace_id, 1, now)))
    await trace_of(telemetry, trace_id.hex(), 1)
    key = await telemetry.secrets.join(f"p{trace_id.hex()[:8]}")
    async with telemetry.channel(key) as channel:
        request = pb.GetTraceRequest(trace_id=trace_id.hex())
        assert await reason_of(TelemetryServiceStub(channel).GetTrace(request)) == "TRACE_NOT_FOUND"


class SlowSpans:
    """Stands for a store that does not answer."""

    async def insert(self, documents: list[Any]) -> None:
        await asyncio.Event().wait()


async def test_a_full_buffer_refuses_and_does_not_grow() -> None:
    buffer = SpanBuffer(SlowSpans(), limit_bytes=100)  # type: ignore[arg-type]  # only insert is used
    task = asyncio.create_task(buffer.run())
    assert buffer.add([{}], 60)
    assert not buffer.add([{}], 60)
    assert buffer.add([{}], 40)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
