"""From journal events to an explanation: which events matter, in which order. Pure.

The chain of a resource holds its own changes of state and what caused them, cause by
cause, back to the first one. What only repeats another line is left out: a run that
follows its allocation, an allocation that hands on a request, a step that another one
of the same kind replaced at once.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from stellwerk_platform import names
from stellwerk_platform.errors import InvalidArgument
from stellwerk_protos.common.v1.common_pb2 import Reason
from stellwerk_protos.telemetry.v1 import telemetry_pb2

# A longer chain keeps its beginning and its end.
LINES = 200
_FIRST_LINES = 50
_LONGEST_NAME = 600
_PASSING = timedelta(seconds=1)
_EVENT_ID_LENGTH = 36


@dataclass(frozen=True)
class Past:
    """A journal event, as far as an explanation needs it."""

    id: str
    sequence: int
    time: Timestamp
    resource: str
    type: str
    actor: str
    code: str
    message: str
    cause: str
    data: Mapping[str, Any] = field(repr=False)

    @property
    def verb(self) -> str:
        """`created` of `stellwerk.runs.run.created.v1`."""
        return self.type.split(".")[3]

    @property
    def kind(self) -> str:
        """`run` of `stellwerk.runs.run.created.v1`."""
        return self.type.split(".")[2]

    @property
    def state(self) -> str:
        """`QUEUED` of `RUN_STATE_QUEUED`; "" for a resource that has no states."""
        return str(self.data.get("state", "")).rpartition("_STATE_")[2]

    @property
    def reason(self) -> Reason:
        """Why, with the cure that the resource's own reason has."""
        own = self.data.get("reason", {})
        cure = own.get("cure", "") if own.get("code") == self.code else ""
        return Reason(code=self.code, message=self.message, cure=cure)


def check_name(name: str) -> str:
    """The workspace of a resource's name, "" outside of workspaces; raises `InvalidArgument`."""
    parts = name.split("/")
    if len(name) > _LONGEST_NAME or len(parts) % 2 or parts[0] not in ("workspaces", "nodes"):
        raise InvalidArgument(
            "INVALID_NAME",
            f"{name[:200]!r} is not the name of a resource.",
            "Give a full name like workspaces/demo/runs/amber-fox-1.",
        )
    for collection, value in zip(parts[::2], parts[1::2], strict=True):
        names.check_id(collection, value)
    return names.workspace_of(name)


def is_event_id(cause: str) -> bool:
    """Whether a cause is an event; a request's is its trace id, without dashes."""
    return len(cause) == _EVENT_ID_LENGTH


def read(sequence: int, body: bytes) -> Past:
    """The event in a structured-mode CloudEvent; raises `ValueError` or `KeyError` for anything else."""
    event = json.loads(body)
    data = event["data"]
    time = Timestamp()
    time.FromJsonString(event["time"])
    reason = data.get("reason", {})
    return Past(
        id=event["id"],
        sequence=sequence,
        time=time,
        resource=event["subject"],
        type=event["type"],
        actor=data.get("actor", ""),
        code=reason.get("code", ""),
        message=reason.get("message", ""),
        cause=data.get("cause", ""),
        data=data["resource"],
    )


def related(last: Past) -> list[str]:
    """Resources whose own history belongs to the story: what places it, what it is made of."""
    environment = last.data.get("workload", {}).get("environment", "")
    return [name for name in (last.data.get("allocation", ""), environment) if name]


def chain(name: str, events: Iterable[Past]) -> list[Past]:
    """The events that explain the state of `name`, first cause first."""
    ordered = sorted({event.id: event for event in events}.values(), key=lambda event: event.sequence)
    by_id = {event.id: event for event in ordered}
    own = _essential([event for event in ordered if event.resource == name])
    if not own:
        return []
    kept = {event.id: event for event in own}
    for event in own:
        kept |= _causes(event, by_id)
    for event in ordered:
        if event.resource != name and _goes_ahead(event, own):
            kept[event.id] = event
    return _without_echoes(name, sorted(kept.values(), key=lambda event: event.sequence))


def shortened(events: Sequence[Past]) -> list[Past]:
    """At most `LINES` of them."""
    if len(events) <= LINES:
        return list(events)
    return [*events[:_FIRST_LINES], *events[_FIRST_LINES - LINES :]]


def line(event: Past) -> telemetry_pb2.ExplanationLine:
    """The event as a client sees it."""
    return telemetry_pb2.ExplanationLine(
        time=event.time,
        resource=event.resource,
        actor=event.actor,
        type=event.type,
        reason=event.reason,
        event_id=event.id,
        cause=event.cause,
    )


def _essential(own: Sequence[Past]) -> list[Past]:
    """The changes of state or reason, without those that another of the same type replaced at once."""
    changes: list[Past] = []
    for event in own:
        if changes and _standing(changes[-1]) == _standing(event):
            continue
        if len(changes) > 1 and changes[-1].type == event.type and _soon(changes[-1], event):
            changes.pop()
        changes.append(event)
    return changes


def _standing(event: Past) -> tuple[str, str, bool, bool]:
    """What a person would call the state."""
    data = event.data
    # Without states, every kind of event is a change.
    state = event.state or event.verb
    return state, event.code, "archiveTime" in data, bool(data.get("cancelRequested"))


def _soon(earlier: Past, later: Past) -> bool:
    return later.time.ToDatetime() - earlier.time.ToDatetime() <= _PASSING


def _causes(event: Past, by_id: Mapping[str, Past]) -> dict[str, Past]:
    """What led to an event, back to the first cause that is known."""
    found: dict[str, Past] = {}
    while (cause := by_id.get(event.cause)) is not None and cause.id not in found:
        found[cause.id] = event = cause
    return found


def _goes_ahead(event: Past, own: Sequence[Past]) -> bool:
    """Whether it tells something that the resource itself does not show: it has not followed yet,
    or had to wait for a lock of its environment."""
    if event.kind == "environment_version":
        return event.verb == "locked" and event.sequence > own[0].sequence
    return event.kind == "allocation" and event.sequence > own[-1].sequence and not _ended(own[-1])


def _ended(event: Past) -> bool:
    return event.state in ("COMPLETED", "FAILED", "CANCELED")


def _without_echoes(name: str, events: Sequence[Past]) -> list[Past]:
    """Of a cause and an effect that say the same, the explained resource's own, else the cause."""
    by_id = {event.id: event for event in events}
    dropped: set[str] = set()
    for event in events:
        cause = by_id.get(event.cause)
        if cause is None or cause.resource == event.resource or _said(cause) != _said(event):
            continue
        dropped.add(cause.id if event.resource == name else event.id)
    return [event for event in events if event.id not in dropped]


def _said(event: Past) -> tuple[str, str]:
    return event.code, event.message
