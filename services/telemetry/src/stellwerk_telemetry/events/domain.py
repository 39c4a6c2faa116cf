"""Journal events as they are indexed and as they are read. Pure."""

import json
from typing import Any

from bson import Binary
from google.protobuf.timestamp_pb2 import Timestamp

from stellwerk_platform import names
from stellwerk_platform.documents import Document
from stellwerk_platform.errors import InvalidArgument
from stellwerk_protos.telemetry.v1 import telemetry_pb2


def check_parent(parent: str) -> str:
    """The workspace id in a parent, "-" for all; raises `InvalidArgument`."""
    return names.parse("workspaces/*", parent, wildcard=True)[0]


def check_resource(name: str) -> str:
    """The name of a resource, or "" for any; raises `InvalidArgument` for what can be no name."""
    parts = name.split("/")
    if name and (len(parts) % 2 or not all(parts)):
        raise InvalidArgument(
            "INVALID_NAME",
            f"{name[:200]!r} is not the name of a resource.",
            "Give a full name, for example workspaces/WORKSPACE/runs/RUN.",
        )
    return name


def check_sequence(sequence: int) -> int:
    """Raises `InvalidArgument` for a negative sequence."""
    if sequence < 0:
        raise InvalidArgument("INVALID_SEQUENCE", f"The sequence {sequence} is negative.", "Use 0 or more.")
    return sequence


def to_document(sequence: int, body: bytes) -> Document:
    """What the index holds of an event; raises `ValueError` for what is no journal event."""
    event = _parse(body)
    traceparent = str(event.get("traceparent", "")).split("-")
    data = event.get("data")
    cause = data.get("cause") if isinstance(data, dict) else None
    return {
        "_id": str(event["id"]),
        "sequence": sequence,
        "workspace": names.workspace_of(event["subject"]),
        "resource": event["subject"],
        "type": event["type"],
        "trace_id": traceparent[1] if len(traceparent) == 4 else "",
        "cause": str(cause or ""),
        "time": _time(event).ToDatetime(),
        "body": Binary(body),
    }


def to_proto(sequence: int, body: bytes) -> telemetry_pb2.Event:
    """The event as it is read; raises `ValueError` for what is no journal event."""
    event = _parse(body)
    return telemetry_pb2.Event(
        sequence=sequence,
        cloud_event=body.decode(),
        type=event["type"],
        resource=event["subject"],
        time=_time(event),
    )


def _parse(body: bytes) -> dict[str, Any]:
    event = json.loads(body)
    if not isinstance(event, dict):
        raise ValueError("not an object")
    for field in ("id", "type", "subject", "time"):
        if not isinstance(event.get(field), str):
            raise ValueError(f"no {field}")
    return event


def _time(event: dict[str, Any]) -> Timestamp:
    time = Timestamp()
    time.FromJsonString(event["time"])
    return time
