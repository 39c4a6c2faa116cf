"""Spans as OTLP brings them, as they are stored, and as they are read. Pure."""

import json
import re
from datetime import datetime
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from stellwerk_platform.documents import Document
from stellwerk_platform.errors import InvalidArgument
from stellwerk_protos.telemetry.v1 import telemetry_pb2

# What one span may take of the store.
_TEXT_LIMIT = 4_096
_ATTRIBUTES_LIMIT = 128
_INT64_LIMIT = 2**63
_TRACE_ID = re.compile(r"[0-9a-f]{32}")
_UNKNOWN_SERVICE = "unknown"


def check_trace_id(trace_id: str) -> str:
    """Returns the trace id in lower case; raises `InvalidArgument` unless it is 32 hexadecimal digits."""
    if not _TRACE_ID.fullmatch(trace_id.lower()):
        raise InvalidArgument(
            "INVALID_TRACE_ID",
            f"{trace_id[:80]!r} is not a trace id.",
            "Give 32 hexadecimal digits, as `stellwerk trace` and the traceparent of an event show them.",
        )
    return trace_id.lower()


def to_documents(request: ExportTraceServiceRequest, expire_time: datetime) -> tuple[list[Document], int]:
    """The documents of all spans, and how many spans were refused because their ids or times are wrong."""
    documents: list[Document] = []
    rejected = 0
    for resource_spans in request.resource_spans:
        service = _service_of(resource_spans.resource)
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                if _is_valid(span):
                    documents.append(_to_document(span, service, expire_time))
                else:
                    rejected += 1
    return documents, rejected


def to_proto(document: Document) -> telemetry_pb2.Span:
    """The span of a document."""
    span = telemetry_pb2.Span(
        span_id=document["span_id"],
        parent_span_id=document["parent_span_id"],
        name=document["name"],
        service=document["service"],
        duration_us=document["duration_us"],
        error=document["error"],
        attributes={item["k"]: item["v"] for item in document["attributes"]},
    )
    span.start_time.FromNanoseconds(document["start_ns"])
    return span


def _is_valid(span: Any) -> bool:
    """Ids as the W3C wants them, and times that a signed 64-bit number holds."""
    return (
        len(span.trace_id) == 16
        and len(span.span_id) == 8
        and len(span.parent_span_id) in (0, 8)
        and 0 < span.start_time_unix_nano < _INT64_LIMIT
        and span.end_time_unix_nano < _INT64_LIMIT
    )


def _to_document(span: Any, service: str, expire_time: datetime) -> Document:
    trace_id, span_id = span.trace_id.hex(), span.span_id.hex()
    return {
        # A span that comes a second time is the same one.
        "_id": f"{trace_id}:{span_id}",
        "trace_id": trace_id,
        "span_id": span_id,
        "parent_span_id": span.parent_span_id.hex(),
        "name": _cut(span.name),
        "service": service,
        "start_ns": span.start_time_unix_nano,
        "duration_us": max(0, span.end_time_unix_nano - span.start_time_unix_nano) // 1_000,
        "error": span.status.code == Status.STATUS_CODE_ERROR,
        "attributes": [{"k": key, "v": value} for key, value in _attributes(span).items()],
        "expire_time": expire_time,
    }


def _attributes(span: Any) -> dict[str, str]:
    """The attributes as text, with the last exception and the status text among them."""
    values = list(span.attributes)
    for event in span.events:
        values += event.attributes if event.name == "exception" else ()
    result = {_cut(item.key): _text(item.value) for item in values[:_ATTRIBUTES_LIMIT]}
    if span.status.message:
        result["otel.status_description"] = _cut(span.status.message)
    return result


def _service_of(resource: Any) -> str:
    for item in resource.attributes:
        if item.key == "service.name":
            return _text(item.value) or _UNKNOWN_SERVICE
    return _UNKNOWN_SERVICE


def _text(value: Any) -> str:
    plain = _plain(value)
    return _cut(plain if isinstance(plain, str) else json.dumps(plain))


def _plain(value: Any) -> Any:
    """An OTLP AnyValue as what it stands for."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_plain(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return {item.key: _plain(item.value) for item in value.kvlist_value.values}
    if kind == "bytes_value":
        return value.bytes_value.hex()
    return getattr(value, kind) if kind else ""


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT_LIMIT else text[: _TEXT_LIMIT - 1] + "…"
