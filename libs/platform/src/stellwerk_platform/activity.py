"""Reports what was refused and what secret was read, for the activity log.

What changes a resource is in the journal; this is the rest. A report never makes an
answer wait and costs bounded memory and bounded room in the stream `ACTIVITY`, however
many callers guess keys: the first few of an actor, action and address in a second are
reported each, the rest of that second together (`count`).

`App` gives each service a `Reporter`; `denied` and `accessed` find it by themselves in
whatever its process does, RPCs included.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import uuid_utils
from google.protobuf import json_format

from stellwerk_platform import names, telemetry
from stellwerk_platform.documents import now
from stellwerk_platform.errors import PlatformError, Unavailable
from stellwerk_protos.telemetry.v1.activity_pb2 import (
    ACTIVITY_RESULT_DENIED,
    ACTIVITY_RESULT_DONE,
    Activity,
    ActivityResult,
)

if TYPE_CHECKING:
    from stellwerk_platform.bus import Bus

log = logging.getLogger(__name__)
STREAM = "ACTIVITY"
_EACH = 3
# Different (actor, action, address) in a second, of known and of unknown actors each: a flood of guessed
# keys must not hide what a person does.
_KEYS = 100
_INTERVAL_SECONDS = 1.0
_FAREWELL_SECONDS = 1.0
_NAME_CHARACTERS = 300
_TEXT_CHARACTERS = 500
_REST = ("", "", "", "")


@dataclass
class _Room:
    """What one kind of actor has reported since the last batch."""

    reports: dict[tuple[str, str, str, str], list[Activity]] = field(default_factory=dict)

    def add(self, activity: Activity) -> None:
        key = (activity.actor, activity.action, activity.address, str(activity.result))
        if key not in self.reports and len(self.reports) >= _KEYS:
            key, activity = _REST, _untold(activity)
        found = self.reports.setdefault(key, [])
        if not found or (len(found) < _EACH and key != _REST):
            found.append(activity)
            return
        found[-1].count += 1
        if found[-1].resource != activity.resource:
            found[-1].resource = ""

    def take(self) -> Iterator[Activity]:
        reports, self.reports = self.reports, {}
        for activities in reports.values():
            yield from activities


def _untold(activity: Activity) -> Activity:
    """What stands for an activity beyond those that are told one by one."""
    return Activity(
        id=activity.id,
        time=activity.time,
        result=activity.result,
        reason="TOO_MANY_TO_TELL",
        message="More than is told one by one.",
        count=1,
    )


class Reporter:
    """The reports of one service."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._known, self._unknown = _Room(), _Room()
        self._awake = asyncio.Event()

    def report(self, result: ActivityResult.ValueType, activity: Activity) -> None:
        """Takes a report in; `time`, `trace_id`, `id` and `count` are set here."""
        activity.id = str(uuid_utils.uuid7())
        activity.time.CopyFrom(now())
        activity.result = result
        activity.trace_id = telemetry.trace_id()
        activity.count = 1
        (self._known if activity.actor else self._unknown).add(activity)
        self._awake.set()

    async def run(self, bus: Bus) -> None:
        """Publishes reports for ever; the first at once, what comes after it once a second."""
        batch: list[Activity] = []
        try:
            while True:
                await self._awake.wait()
                self._awake.clear()
                batch = [*self._known.take(), *self._unknown.take()]
                await self._publish_patiently(bus, batch)
                batch = []
                await asyncio.sleep(_INTERVAL_SECONDS)
        finally:
            batch += [*self._known.take(), *self._unknown.take()]
            with suppress(Unavailable, TimeoutError):
                async with asyncio.timeout(_FAREWELL_SECONDS):
                    await self._publish(bus, batch)

    async def run_apart(self, connect: Callable[[], AbstractAsyncContextManager[Bus]]) -> None:
        """The same on a connection of its own, for a process that also works while NATS is away."""
        while True:
            try:
                async with connect() as bus, asyncio.TaskGroup() as tasks:
                    tasks.create_task(bus.lasts())
                    tasks.create_task(self.run(bus))
            except* Unavailable as error:
                log.info("Reports for the activity log wait: %.200s", error.exceptions[0])
            await asyncio.sleep(_INTERVAL_SECONDS)

    async def _publish_patiently(self, bus: Bus, batch: list[Activity]) -> None:
        while True:
            try:
                return await self._publish(bus, batch)
            except Unavailable as error:
                log.info("Reports for the activity log wait: %.200s", error)
                await asyncio.sleep(_INTERVAL_SECONDS)

    async def _publish(self, bus: Bus, batch: list[Activity]) -> None:
        await bus.publish_many(
            (
                bus.names.subject("activity", _workspace(activity.resource), self._service),
                json.dumps(json_format.MessageToDict(activity), ensure_ascii=False).encode(),
                {"Nats-Msg-Id": activity.id, "Content-Type": "application/json"},
            )
            for activity in batch
        )


_current: ContextVar[Reporter | None] = ContextVar("reporter", default=None)


def use(reporter: Reporter) -> None:
    """Makes `reporter` the one of this task and of all that it starts, gRPC servers included."""
    _current.set(reporter)


def denied(
    action: str, error: PlatformError, *, actor: str = "", resource: str = "", address: str = ""
) -> None:
    """Reports that `action` (the RPC as `package.Service/Method`, or `GET /path`) was refused with `error`.

    `actor` is empty when the caller is not known, `address` the client's without its port.
    """
    _report(
        ACTIVITY_RESULT_DENIED,
        Activity(
            actor=_clean(actor),
            action=_clean(action),
            resource=_clean(resource),
            address=_clean(address),
            reason=error.reason,
            message=_clean(error.message, _TEXT_CHARACTERS),
        ),
    )


def accessed(action: str, *, actor: str, resource: str, address: str = "", message: str = "") -> None:
    """Reports that somebody read something sensitive, a secret for example: `resource` names it."""
    _report(
        ACTIVITY_RESULT_DONE,
        Activity(
            actor=_clean(actor),
            action=_clean(action),
            resource=_clean(resource),
            address=_clean(address),
            message=_clean(message, _TEXT_CHARACTERS),
        ),
    )


def _report(result: ActivityResult.ValueType, activity: Activity) -> None:
    reporter = _current.get()
    if reporter is not None:
        reporter.report(result, activity)


def _clean(text: str, characters: int = _NAME_CHARACTERS) -> str:
    """Hostile text, short enough, and such that a proto takes it."""
    return text[:characters].encode(errors="replace").decode()


def _workspace(resource: str) -> str:
    """The workspace as a token of a subject: what was refused may be about a name that is none."""
    try:
        return names.check_id("workspaces", names.workspace_of(resource)) if resource else "_"
    except PlatformError:
        return "_"
