"""The one sentence that answers "why is it in this state". Pure."""

from collections.abc import Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from stellwerk_platform import names
from stellwerk_telemetry.explain.domain import Past

_WAITING = frozenset({"STARTING", "PROVISIONING", "QUEUED", "ASSIGNED", "PREPARING", "CREATING"})
# What would end a wait, by reason code.
_ENDS_WHEN = {
    "SUBMITTED": "`compute` takes it up within moments",
    "WAITING_FOR_PLACEMENT": "`compute` chooses a node within moments",
    "WAITING_FOR_SLOT": "it goes on when a run before it ends",
    "NO_NODE": "it goes on when an agent of that pool connects",
    "NODE_CHOSEN": "it goes on when the agent there takes it up",
    "NODE_CHANGED": "it goes on when a node is free",
}
_PREPARING = "it goes on when that is done"
_ENDED = {"COMPLETED": "completed", "SUCCEEDED": "succeeded", "FAILED": "failed", "DELETED": "was deleted"}


def summary(name: str, chain: Sequence[Past]) -> str:
    """Why `name` is in its state; `chain` is not empty and holds events of it."""
    own = [event for event in chain if event.resource == name]
    last, begin = own[-1], _begin(own)
    subject = names.id_of(name)
    if last.kind == "run" and "archiveTime" in last.data:
        subject += " (archived)"
    if last.state == "NOT_RESPONDING":
        return _silent(subject, last, begin, chain)
    if last.state in ("CANCELED", "CANCEL_REQUESTED"):
        return _canceled(subject, last, begin, chain)
    if last.state in _ENDED:
        return _sentence(f"{subject} {_ended(last)} at {_moment(begin)}", *_because(last))
    if last.state in _WAITING:
        ending = _ENDS_WHEN.get(last.code) or (_PREPARING if last.state == "PREPARING" else "")
        head = f"{subject} is {_words(last.state)} since {_moment(begin)}"
        return _sentence(head, *_because(last), ending)
    if last.state:
        return _sentence(f"{subject} is {_words(last.state)} since {_moment(begin)}", *_because(last))
    who = f" by {last.actor}" if last.actor else ""
    return _sentence(
        f"{subject} was {last.verb.replace('_', ' ')} at {_moment(last.time)}{who}", *_because(last)
    )


def _begin(own: Sequence[Past]) -> Timestamp:
    """Since when it is in its last state."""
    begin = own[-1].time
    for event in reversed(own):
        if event.state != own[-1].state:
            break
        begin = event.time
    return begin


def _ended(last: Past) -> str:
    code = f" ({last.code})" if last.state == "FAILED" and last.code else ""
    return _ENDED[last.state] + code


def _silent(subject: str, last: Past, begin: Timestamp, chain: Sequence[Past]) -> str:
    node = next((event for event in reversed(chain) if event.kind == "node"), None)
    lease = f"the lease of {node.resource} ran out" if node else "its lease ran out"
    message = node.message if node else last.message
    head = f"{subject} is not responding since {_moment(begin)}: {lease}"
    return _sentence(head, message, node.reason.cure if node else last.reason.cure)


def _canceled(subject: str, last: Past, begin: Timestamp, chain: Sequence[Past]) -> str:
    asked = next((event for event in chain if event.verb in ("cancel_requested", "deleting")), None)
    done = last.state == "CANCELED"
    head = f"{subject} {'was canceled' if done else 'is being canceled'} at {_moment(begin)}"
    if not done:
        head = f"{subject} is being canceled since {_moment(begin)}"
    if asked is None:
        return _sentence(head, *_because(last))
    whose = "" if asked.resource == last.resource else f" (with {asked.resource})"
    ending = "" if done else "it ends when its processes are gone"
    return _sentence(head, f"{asked.message.rstrip('. ')}{whose}, asked at {_moment(asked.time)}", ending)


def _because(last: Past) -> tuple[str, str]:
    return last.message or last.code, last.reason.cure


def _sentence(head: str, *parts: str) -> str:
    """`head: part; part.`"""
    first, *more = [said for part in (head, *parts) if (said := part.strip().rstrip("."))]
    if not more:
        return first + "."
    separator = "; " if ": " in first else ": "
    return first + separator + "; ".join([more[0], *map(_uncapitalised, more[1:])]) + "."


def _uncapitalised(text: str) -> str:
    """The start of a sentence as the middle of one."""
    return text[0].lower() + text[1:] if text[1:2].islower() else text


def _words(state: str) -> str:
    return state.replace("_", " ").capitalize()


def _moment(time: Timestamp) -> str:
    return time.ToDatetime().strftime("%Y-%m-%d %H:%M:%S UTC")
