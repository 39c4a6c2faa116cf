"""Spans and events as documents: without any server."""

import json
from datetime import UTC, datetime

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from services.telemetry.tests.support import export_request, new_trace_id, span
from stellwerk_platform.errors import InvalidArgument
from stellwerk_telemetry.events import domain as events
from stellwerk_telemetry.traces import domain as traces

END = datetime(2030, 1, 1, tzinfo=UTC)


def test_a_span_keeps_what_a_reader_needs() -> None:
    trace_id = new_trace_id()
    made = span(trace_id, 7, 1_000_000_001, parent_span_id=bytes(7) + b"\1")
    made.status.code = Status.STATUS_CODE_ERROR
    made.attributes.add(key="rpc.code").value.int_value = 14
    listed = made.attributes.add(key="list").value.array_value
    listed.values.add().string_value = "a"
    listed.values.add().bool_value = True
    exception = made.events.add(name="exception")
    exception.attributes.add(key="exception.message").value.string_value = "no"
    (document,), rejected = traces.to_documents(export_request(made), END)
    found = traces.to_proto(document)
    assert rejected == 0
    assert document["_id"] == f"{trace_id.hex()}:0000000000000007"
    assert (found.span_id, found.parent_span_id) == ("0000000000000007", "0000000000000001")
    assert (found.service, found.duration_us, found.error) == ("runs", 1, True)
    assert found.start_time.ToNanoseconds() == 1_000_000_001
    assert dict(found.attributes) == {"rpc.code": "14", "list": '["a", true]', "exception.message": "no"}


def test_wrong_ids_and_times_are_counted_and_long_texts_cut() -> None:
    good = span(new_trace_id(), 1, 1)
    good.attributes.add(key="long").value.string_value = "x" * 100_000
    bad = [span(b"short", 2, 1), span(new_trace_id(), 3, 0), span(new_trace_id(), 4, 2**63)]
    (document,), rejected = traces.to_documents(export_request(good, *bad), END)
    assert rejected == 3
    assert len(document["attributes"][0]["v"]) == 4_096


@pytest.mark.parametrize("trace_id", ["", "x" * 32, "ab" * 15, "ab" * 17])
def test_a_trace_id_has_32_digits(trace_id: str) -> None:
    with pytest.raises(InvalidArgument):
        traces.check_trace_id(trace_id)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"\xff", b'{"id": 1}'])
def test_what_is_no_event_is_not_indexed(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        events.to_document(1, body)


def test_an_event_is_indexed_by_workspace_resource_and_trace() -> None:
    body = json.dumps(
        {
            "id": "1",
            "type": "stellwerk.runs.run.created.v1",
            "subject": "workspaces/demo/runs/a",
            "time": "2026-01-02T03:04:05.678901Z",
            "traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01",
        }
    ).encode()
    document = events.to_document(5, body)
    assert (document["workspace"], document["trace_id"]) == ("demo", "ab" * 16)
    found = events.to_proto(5, body)
    assert (found.sequence, found.resource) == (5, "workspaces/demo/runs/a")
    assert found.time.ToNanoseconds() % 1_000_000_000 == 678_901_000
