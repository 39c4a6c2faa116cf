"""The OTLP collector's gRPC services, as any OpenTelemetry exporter calls them.

Metrics and log records are accepted and dropped: an exporter that sends all three
signals to one address must not fail, and what Stellwerk shows of them comes from
`runs` and from the processes' own logs.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from stellwerk_platform.grpc_server import Registration
from stellwerk_telemetry.traces.buffer import SpanBuffer
from stellwerk_telemetry.traces.domain import to_documents

PERMISSION = "telemetry.write"


class TraceSink(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes spans."""

    def __init__(self, buffer: SpanBuffer, keep: timedelta) -> None:
        self._buffer = buffer
        self._keep = keep

    async def Export(self, request: Any, context: Any) -> Any:
        """Answers at once; spans that could not be taken are counted in the partial success."""
        documents, rejected = to_documents(request, datetime.now(UTC) + self._keep)
        message = "Some spans have wrong ids or times." if rejected else ""
        if not self._buffer.add(documents, request.ByteSize()):
            rejected += len(documents)
            message = "The store does not keep up."
        response = trace_service_pb2.ExportTraceServiceResponse()
        if rejected:
            response.partial_success.rejected_spans = rejected
            response.partial_success.error_message = message
        return response


class MetricsSink(metrics_service_pb2_grpc.MetricsServiceServicer):
    """Accepts and drops."""

    async def Export(self, request: Any, context: Any) -> Any:
        return metrics_service_pb2.ExportMetricsServiceResponse()


class LogsSink(logs_service_pb2_grpc.LogsServiceServicer):
    """Accepts and drops."""

    async def Export(self, request: Any, context: Any) -> Any:
        return logs_service_pb2.ExportLogsServiceResponse()


def registrations(sink: TraceSink) -> list[Registration]:
    """The three services; their protos name no permission, so it is named here."""
    return [
        Registration(
            sink,
            trace_service_pb2_grpc.add_TraceServiceServicer_to_server,
            trace_service_pb2.DESCRIPTOR.services_by_name["TraceService"],
            PERMISSION,
        ),
        Registration(
            MetricsSink(),
            metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server,
            metrics_service_pb2.DESCRIPTOR.services_by_name["MetricsService"],
            PERMISSION,
        ),
        Registration(
            LogsSink(),
            logs_service_pb2_grpc.add_LogsServiceServicer_to_server,
            logs_service_pb2.DESCRIPTOR.services_by_name["LogsService"],
            PERMISSION,
        ),
    ]
