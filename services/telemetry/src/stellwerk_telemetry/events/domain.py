"""Journal events as they are indexed and as they are read. Pure."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from bson import Binary
from google.protobuf.timestamp_pb2 import Timestamp

from stellwerk_platform import names
from stellwerk_platform.documents import Document
from stellwerk_platform.errors import InvalidArgument
from stellwerk_protos.telemetry.v1 import telemetry_pb2

_PATTERN_CHARACTERS = 300


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


def check_time(time: Timestamp) -> datetime:
    """Raises `InvalidArgument` for a time that there cannot be."""
    try:
        return time.ToDatetime(UTC)
    except (ValueError, OverflowError):
        raise InvalidArgument("INVALID_TIME", "The time cannot be read.", "Use RFC 3339.") from None


def check_selection(pattern: str, resource: str) -> Callable[[telemetry_pb2.Event], bool]:
    """Whether an event is wanted; "" means all. Raises `InvalidArgument`."""
    if len(pattern) > _PATTERN_CHARACTERS:
        raise InvalidArgument("INVALID_FILTER", "The pattern is too long.", "Use up to 300 characters.")
    # Pieces in order instead of a regular expression: no pattern takes long.
    pieces = pattern.split("*")
    below = f"{check_resource(resource)}/"

    def wanted(event: telemetry_pb2.Event) -> bool:
        if resource and event.resource != resource and not event.resource.startswith(below):
            return False
        return not pattern or _matches(pieces, event.type)

    return wanted


def _matches(pieces: list[str], text: str) -> bool:
    if len(pieces) == 1:
        return text == pieces[0]
    first, *middle, last = pieces
    if not text.startswith(first) or not text[len(first) :].endswith(last):
        return False
    place, end = len(first), len(text) - len(last)
    for piece in middle:
        place = text.find(piece, place, end)
        if place < 0:
            return False
        place += len(piece)
    return place <= end


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
