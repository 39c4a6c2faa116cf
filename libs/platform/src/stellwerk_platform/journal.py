"""The journal: every transition of every resource as one CloudEvent.

An entry is written in the transaction that changes its resource (`mongo.py`). The
relay publishes entries to JetStream and deletes them once they are stored there;
the message id makes a second publish of the same entry a no-op.
"""

import asyncio
import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import zip_longest
from typing import Any, Protocol

import uuid_utils
from google.protobuf import json_format
from google.protobuf.message import Message

from stellwerk_platform import failpoints, names, telemetry

log = logging.getLogger(__name__)
CONTENT_TYPE = "application/cloudevents+json"
_BATCH = 500
_SWEEP_SECONDS = 2.0


@dataclass(frozen=True)
class Fact:
    """What happened to a resource: a past-tense verb, why, by whom and because of what."""

    verb: str
    code: str
    message: str = ""
    actor: str = ""
    cause: str = ""
    # Where the call came from; "" for what the platform did by itself.
    address: str = ""


@dataclass(frozen=True)
class Entry:
    """A journal entry as it lies in the store until the relay has published it."""

    id: str
    resource: str
    subject: str
    body: bytes
    revision: int


@dataclass(frozen=True)
class Event:
    """A journal event as a consumer sees it."""

    id: str
    type: str
    resource: str
    revision: int
    actor: str
    reason: Mapping[str, str]
    data: Mapping[str, Any] = field(repr=False)
    traceparent: str = ""

    @property
    def verb(self) -> str:
        """`created` of `stellwerk.runs.run.created.v1`."""
        return self.type.split(".")[3]

    def load(self, message: Message) -> None:
        """Fills `message` with the resource's new state."""
        json_format.ParseDict(dict(self.data), message, ignore_unknown_fields=True)


def entry(namespace: str, service: str, resource: Message, fact: Fact) -> Entry:
    """The entry for a resource that has just been given its new revision."""
    name: str = resource.name  # type: ignore[attr-defined]  # every resource has a name and a revision
    revision: int = resource.revision  # type: ignore[attr-defined]
    kind = _kind(resource)
    event_id = str(uuid_utils.uuid7())
    event = {
        "specversion": "1.0",
        "id": event_id,
        "source": f"stellwerk/{service}",
        "type": f"stellwerk.{service}.{kind}.{fact.verb}.v1",
        "subject": name,
        "time": datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "data": {
            "resource": json_format.MessageToDict(resource),
            "revision": revision,
            "actor": fact.actor,
            "reason": {"code": fact.code, "message": fact.message},
            "cause": fact.cause,
            **({"address": fact.address} if fact.address else {}),
        },
    }
    if traceparent := telemetry.traceparent():
        event["traceparent"] = traceparent
    workspace = names.workspace_of(name) or "_"
    subject = f"{namespace}.journal.{workspace}.{service}.{kind}.{fact.verb}"
    body = json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode()
    return Entry(event_id, name, subject, body, revision)


def decode(body: bytes) -> Event:
    """The event in a structured-mode CloudEvent; raises `ValueError` or `KeyError` for anything else."""
    event = json.loads(body)
    data = event["data"]
    return Event(
        id=event["id"],
        type=event["type"],
        resource=event["subject"],
        revision=int(data["revision"]),
        actor=data["actor"],
        reason=data["reason"],
        data=data["resource"],
        traceparent=event.get("traceparent", ""),
    )


def _kind(resource: Message) -> str:
    """`dataset_version` for `DatasetVersion`."""
    name = resource.DESCRIPTOR.name
    return "".join("_" + c.lower() if c.isupper() else c for c in name).lstrip("_")


class Outbox(Protocol):
    """Where entries wait, oldest first."""

    async def pending(self, limit: int) -> list[Entry]:
        """The oldest entries that are not known to be published."""

    async def remove(self, ids: list[str]) -> None:
        """Forgets entries that JetStream has stored."""


class Publisher(Protocol):
    """Who stores messages."""

    async def publish_many(self, messages: Iterable[tuple[str, bytes, Mapping[str, str]]]) -> None:
        """Returns once all are stored; raises `Unavailable` if any may not be."""


class Relay:
    """Publishes entries. Several relays of one store do no harm: JetStream drops the second copy."""

    def __init__(self, outbox: Outbox, publisher: Publisher) -> None:
        self._outbox = outbox
        self._publisher = publisher
        self._awake = asyncio.Event()
        self._awake.set()

    def wake(self) -> None:
        """Says that entries have been committed."""
        self._awake.set()

    async def run(self) -> None:
        """Publishes for ever: when woken, and every two seconds for what others left behind."""
        delay = 0.1
        while True:
            try:
                async with asyncio.timeout(_SWEEP_SECONDS):
                    await self._awake.wait()
            except TimeoutError:
                pass
            self._awake.clear()
            try:
                while await self.publish_batch() == _BATCH:
                    pass
                delay = 0.1
            except Exception as error:
                log.warning("The relay tries again in %.1f s: %.300s", delay, error)
                await asyncio.sleep(delay)
                delay = min(delay * 2, 5.0)
                self._awake.set()

    async def publish_batch(self) -> int:
        """Publishes one batch and returns its size.

        A resource's next entry is sent only after its last one is stored, so that a
        connection that breaks in between cannot turn their order. The revision decides
        what is next: the ids of two replicas follow two clocks.
        """
        entries = await self._outbox.pending(_BATCH)
        by_resource: dict[str, list[Entry]] = defaultdict(list)
        for item in sorted(entries, key=lambda item: item.revision):
            by_resource[item.resource].append(item)
        for wave in zip_longest(*by_resource.values()):
            await self._publisher.publish_many(
                (item.subject, item.body, {"Nats-Msg-Id": item.id, "Content-Type": CONTENT_TYPE})
                for item in wave
                if item is not None
            )
            failpoints.hit("relay.published")
        if entries:
            await self._outbox.remove([item.id for item in entries])
            failpoints.hit("relay.removed")
        return len(entries)
