"""Where in a stream a moment lies."""

import json
from datetime import datetime

import nats.errors
import nats.js.errors

from stellwerk_platform.bus import Bus
from stellwerk_platform.errors import Unavailable


async def next_sequence(bus: Bus, stream: str) -> int:
    """The sequence that the next message will have at least; raises `Unavailable`."""
    try:
        info = await bus.jetstream.stream_info(bus.names.stream(stream))
    except (nats.errors.Error, nats.js.errors.Error, TimeoutError) as error:
        raise _unavailable() from error
    return int(info.state.last_seq) + 1


async def sequence_since(bus: Bus, stream: str, time: datetime) -> int:
    """The sequence of the first message that came at this time or later; raises `Unavailable`.

    Without one it is that of the next. The server finds it by its index of times (JetStream's direct
    get with `start_time`, ADR-31 of nats-architecture-and-design; NATS 2.11 and newer).
    """
    following = await next_sequence(bus, stream)
    query = {"start_time": time.isoformat(), "next_by_subj": ">"}
    try:
        answer = await bus.client.request(
            f"$JS.API.DIRECT.GET.{bus.names.stream(stream)}", json.dumps(query).encode(), timeout=5
        )
    except (nats.errors.Error, TimeoutError) as error:
        raise _unavailable() from error
    headers = answer.headers or {}
    return int(headers["Nats-Sequence"]) if "Nats-Sequence" in headers else following


def _unavailable() -> Unavailable:
    return Unavailable("NATS_UNAVAILABLE", "The journal does not answer.", "Try again.")
