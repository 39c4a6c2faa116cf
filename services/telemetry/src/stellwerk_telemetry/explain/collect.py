"""Gathers the events that an explanation may need; every step is bounded."""

from stellwerk_platform.errors import NotFound
from stellwerk_protos.telemetry.v1 import telemetry_pb2
from stellwerk_telemetry.events.store import Events
from stellwerk_telemetry.explain import domain, words
from stellwerk_telemetry.explain.domain import Past

_OWN_EVENTS = 500
_RELATED_EVENTS = 100
# Longer chains of causes than this do not exist; a loop ends anyway.
_DEPTH = 20
_CAUSES = 1_000


async def explain(events: Events, name: str) -> telemetry_pb2.Explanation:
    """Why the resource is in its state; raises `InvalidArgument` and `NotFound`."""
    workspace = domain.check_name(name)
    own = await events.history(name, _OWN_EVENTS)
    if not own:
        raise NotFound(
            "RESOURCE_NOT_IN_JOURNAL",
            f"The journal holds nothing about {name}.",
            "Check the name; what was created just now appears within moments.",
        )
    found = {event.id: event for event in own}
    for relative in domain.related(own[-1]):
        found |= {event.id: event for event in await events.history(relative, _RELATED_EVENTS)}
    followers = await events.caused_by(own[-1].id, workspace, _RELATED_EVENTS)
    found |= {event.id: event for event in followers}
    await _follow(events, workspace, found)
    chain = domain.chain(name, found.values())
    return telemetry_pb2.Explanation(
        name=name,
        summary=words.summary(name, chain),
        lines=[domain.line(event) for event in domain.shortened(chain)],
    )


async def _follow(events: Events, workspace: str, found: dict[str, Past]) -> None:
    """Adds causes, and their causes; those of another workspace stay unseen."""
    asked: set[str] = set()
    for _ in range(_DEPTH):
        causes = {event.cause for event in found.values() if domain.is_event_id(event.cause)}
        wanted = sorted(causes - found.keys() - asked)[:_CAUSES]
        if not wanted:
            return
        asked.update(wanted)
        found |= {event.id: event for event in await events.by_id(wanted, workspace)}
