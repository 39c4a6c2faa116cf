"""Puts what arrives, again, overlapping or too early, into the one order that its sender gave it.

A source numbers its points per metric, and a log its bytes; so for every such
sequence there is one next position, and what an arrival holds below it is known,
what it holds from there on is new, and one that begins above it has to wait.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

# (metric, source) or (log,)
Key: TypeAlias = tuple[str, ...]


@dataclass(frozen=True)
class Arrival:
    """`length` items from `position` of one sequence; `origin` is the message that brought them."""

    key: Key
    position: int
    length: int
    payload: object
    origin: str


@dataclass(frozen=True)
class Fresh:
    """The part of an arrival that is new: all from item `skip` on."""

    arrival: Arrival
    skip: int


def advance(arrivals: Iterable[Arrival], ends: dict[Key, int]) -> tuple[list[Fresh], list[Arrival]]:
    """What is new, in the order to store it, and what has to wait because something before it is missing.

    `ends` holds the next position by sequence (0 when absent) and is moved on. What
    was known already is in neither list.
    """
    fresh: list[Fresh] = []
    early = [arrival for arrival in arrivals if not _take(arrival, ends, fresh)]
    waiting = [
        arrival
        for arrival in sorted(early, key=lambda arrival: arrival.position)
        if not _take(arrival, ends, fresh)
    ]
    return fresh, waiting


def _take(arrival: Arrival, ends: dict[Key, int], fresh: list[Fresh]) -> bool:
    end = ends.get(arrival.key, 0)
    if arrival.position > end:
        return False
    skip = end - arrival.position
    if skip < arrival.length:
        fresh.append(Fresh(arrival, skip))
        ends[arrival.key] = arrival.position + arrival.length
    return True
