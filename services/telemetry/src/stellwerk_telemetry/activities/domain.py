"""Activities as they are stored, found and written out. Pure."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf import json_format

from stellwerk_platform import names
from stellwerk_platform.documents import Document
from stellwerk_platform.errors import InvalidArgument
from stellwerk_protos.telemetry.v1 import activity_pb2 as pb
from stellwerk_telemetry.events.domain import check_resource, check_time

_COLUMNS = (
    *("time", "actor", "action", "resource", "address", "result", "reason", "message"),
    *("trace_id", "count", "id"),
)
# What a spreadsheet would take for a formula (owasp.org, "CSV Injection").
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_FILTER_CHARACTERS = 500
_MESSAGE_CHARACTERS = 500
_LEVELS = 20
_PREFIX = "ACTIVITY_RESULT_"


@dataclass(frozen=True)
class Query:
    """Which activities are wanted: of one workspace, or with "" of what lies in none."""

    workspace: str
    actor: str
    action: str
    resource: str
    result: str
    start: datetime | None
    end: datetime | None


def check_query(parent: str, given: pb.ActivityFilter) -> Query:
    """Raises `InvalidArgument` for what can match nothing."""
    for text in (given.actor, given.action):
        if len(text) > _FILTER_CHARACTERS or "\0" in text:
            raise InvalidArgument("INVALID_FILTER", "The filter is too long.", "Use up to 500 characters.")
    return Query(
        workspace=names.parse("workspaces/*", parent)[0] if parent else "",
        actor=given.actor,
        action=given.action,
        resource=check_resource(given.resource),
        result=pb.ActivityResult.Name(given.result).removeprefix(_PREFIX) if given.result else "",
        start=check_time(given.start_time) if given.HasField("start_time") else None,
        end=check_time(given.end_time) if given.HasField("end_time") else None,
    )


def position(time: datetime) -> str:
    """The first id that an activity at this time can have: ids sort by time."""
    return f"{max(int(time.timestamp() * 1000), 0):014d}"


def from_journal(sequence: int, body: bytes) -> Document:
    """What the log says of a journal event; raises `ValueError` for what is none."""
    event = _object(json.loads(body))
    data, reason = _object(event.get("data")), _object(_object(event.get("data")).get("reason"))
    traceparent = str(event.get("traceparent", "")).split("-")
    activity = pb.Activity(
        actor=str(data.get("actor") or ""),
        action=_text(event, "type"),
        resource=_text(event, "subject"),
        address=str(data.get("address") or ""),
        result=pb.ACTIVITY_RESULT_DONE,
        reason=str(reason.get("code") or ""),
        message=str(reason.get("message") or "")[:_MESSAGE_CHARACTERS],
        trace_id=traceparent[1] if len(traceparent) == 4 else "",
        count=1,
    )
    activity.time.FromJsonString(_text(event, "time"))
    return _document(activity, f"j{sequence:014d}")


def from_report(sequence: int, body: bytes) -> Document:
    """What the log says of a report in `ACTIVITY`; raises `ValueError` for what is none."""
    activity = pb.Activity()
    try:
        json_format.Parse(body, activity, ignore_unknown_fields=True)
    except json_format.ParseError as error:
        raise ValueError(str(error)) from error
    if not activity.HasField("time"):
        raise ValueError("no time")
    return _document(activity, f"r{sequence:014d}")


def expiring(document: Document, days: float) -> Document:
    """The same, forgotten after some days: reports are not in the journal, which is for ever."""
    return document | {"expire_time": document["time"] + timedelta(days=days)}


def _document(activity: pb.Activity, place: str) -> Document:
    time = activity.time.ToDatetime(UTC)
    document: Document = {
        "_id": f"{position(time)}-{place}",
        "workspace": _workspace(activity.resource),
        "lineage": _lineage(activity.resource),
        "time": time,
        "result": pb.ActivityResult.Name(activity.result).removeprefix(_PREFIX),
        "count": max(activity.count, 1),
    }
    for field in ("actor", "action", "resource", "address", "reason", "message", "trace_id"):
        document[field] = getattr(activity, field)
    return document


def _workspace(resource: str) -> str:
    """The workspace, or "" when what somebody tried names none that there can be."""
    try:
        return names.check_id("workspaces", names.workspace_of(resource)) if resource else ""
    except InvalidArgument:
        return ""


def _lineage(resource: str) -> list[str]:
    """The resource and all that it lies below, so that each of them finds it by an index."""
    parts = resource.split("/")[: 2 * _LEVELS]
    return ["/".join(parts[:length]) for length in range(2, len(parts) + 1, 2)] or [resource]


def to_proto(document: Document) -> pb.Activity:
    """The activity as it is read."""
    activity = pb.Activity(
        id=document["_id"],
        result=pb.ActivityResult.Value(_PREFIX + document["result"]),
        count=document["count"],
        **{
            field: document[field]
            for field in ("actor", "action", "resource", "address", "reason", "message", "trace_id")
        },
    )
    activity.time.FromDatetime(document["time"])
    return activity


def csv_header() -> bytes:
    """The first line of a CSV export (RFC 4180)."""
    return _csv([_COLUMNS])


def csv_lines(activities: Iterable[pb.Activity]) -> bytes:
    """One record each; a cell that a spreadsheet would compute begins with an apostrophe instead."""
    return _csv([[_cell(activity, column) for column in _COLUMNS] for activity in activities])


def json_lines(activities: Iterable[pb.Activity]) -> bytes:
    """One object of proto JSON a line."""
    lines = (
        json.dumps(json_format.MessageToDict(activity), ensure_ascii=False, separators=(",", ":"))
        for activity in activities
    )
    return "".join(f"{line}\n" for line in lines).encode()


def _csv(rows: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _cell(activity: pb.Activity, column: str) -> str:
    if column == "time":
        return str(activity.time.ToJsonString())
    if column == "result":
        return pb.ActivityResult.Name(activity.result).removeprefix(_PREFIX)
    text = str(getattr(activity, column))
    return f"'{text}" if text.startswith(_FORMULA) else text


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _text(event: dict[str, Any], field: str) -> str:
    value = event.get(field)
    if not isinstance(value, str):
        raise ValueError(f"no {field}")
    return value
