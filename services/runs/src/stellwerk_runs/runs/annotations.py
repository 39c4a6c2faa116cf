"""What a script tells of itself, parameters and tags: what is kept, and what is left out.

A parameter is written once: the first value stays, and another one later is left out.
A tag can be set again. Nothing here can stop a training, so what goes over a bound is
left out and named in the reason of the event, never refused.
"""

from collections.abc import Iterator, Mapping

from stellwerk_platform.journal import Fact
from stellwerk_protos.runs.v1.runs_pb2 import Run

PARAMS = 1_000
TAGS = 50
_KEY_LENGTH = 250
_VALUE_LENGTH = 8_000
# A run is one journal event, which is one NATS message.
TOTAL_BYTES = 1024 * 1024
_NAMED = 5


def annotate(run: Run, params: Mapping[str, str], tags: Mapping[str, str]) -> Fact | None:
    """Adds parameters and tags; None when that changes nothing."""
    left_out: list[str] = []
    room = TOTAL_BYTES - _size(run.params) - _size(run.tags)
    changed = 0
    for group, key, value in _pairs(params, tags):
        stored, most = (run.params, PARAMS) if group == "params" else (run.tags, TAGS)
        if stored.get(key) == value:
            continue
        cost = _cost(key, value) - (_cost(key, stored[key]) if key in stored else 0)
        problem = _problem(group, key, value, key in stored, len(stored) >= most)
        if problem or cost > room:
            left_out.append(f"{group}.{key[:80]} ({problem or 'the run has 1 MiB of them'})")
            continue
        stored[key] = value
        room -= cost
        changed += 1
    if not changed:
        return None
    if not left_out:
        return Fact("annotated", "LOGGED", f"The script logged {changed} parameters and tags.")
    more = f" and {len(left_out) - _NAMED} more" if len(left_out) > _NAMED else ""
    text = f"{changed} parameters and tags were stored. Left out: {', '.join(left_out[:_NAMED])}{more}."
    return Fact("annotated", "LOGGED_IN_PART", text)


def _pairs(params: Mapping[str, str], tags: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    for group, pairs in (("params", params), ("tags", tags)):
        for key, value in pairs.items():
            yield group, key, value


def _problem(group: str, key: str, value: str, known: bool, full: bool) -> str:
    if known and group == "params":
        return "it has a value already"
    if not 0 < len(key) <= _KEY_LENGTH or "\0" in key:
        return f"a name has 1 to {_KEY_LENGTH} characters"
    if len(value) > _VALUE_LENGTH or "\0" in value:
        return f"a value has up to {_VALUE_LENGTH:,} characters"
    if full and not known:
        return f"a run has up to {PARAMS if group == 'params' else TAGS:,} of them"
    return ""


def _size(pairs: Mapping[str, str]) -> int:
    return sum(_cost(key, value) for key, value in pairs.items())


def _cost(key: str, value: str) -> int:
    return len(key.encode()) + len(value.encode())
