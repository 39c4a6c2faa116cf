"""Dead letters lie in a JetStream stream of their own (docs/interfaces.md), not in MongoDB."""

import json
from datetime import UTC
from typing import Any

import nats.errors
import nats.js.errors

from stellwerk_platform import paging
from stellwerk_platform.bus import Bus
from stellwerk_platform.errors import NotFound, Unavailable
from stellwerk_platform.journal import CONTENT_TYPE
from stellwerk_protos.telemetry.v1 import telemetry_pb2

_STREAM = "DEADLETTER"


class DeadLetters:
    """Lists dead letters and hands them back."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._stream = bus.names.stream(_STREAM)

    async def page(self, size: int, token: str) -> tuple[list[telemetry_pb2.DeadLetter], str]:
        """One page, oldest first."""
        size = paging.page_size(size)
        sequence = int(paging.decode(token, _STREAM) or 0) + 1
        letters: list[telemetry_pb2.DeadLetter] = []
        room = paging.Room(size)
        while (message := await self._next(sequence)) is not None:
            if not room.take(len(message.data or b"")):
                return letters, paging.encode(letters[-1].sequence, _STREAM)
            letters.append(_to_proto(message))
            sequence = message.seq + 1
        return letters, ""

    async def replay(self, sequence: int) -> None:
        """Hands the event to its consumer once more, then forgets it; raises `NotFound`.

        The message id makes a second call after a broken first one harmless.
        """
        message = await self._next(sequence) if sequence > 0 else None
        if message is None or message.seq != sequence:
            raise NotFound(
                "DEAD_LETTER_NOT_FOUND",
                f"There is no dead letter {sequence}.",
                "List them; it may have been replayed already.",
            )
        consumer = _to_proto(message).consumer
        headers = {"Content-Type": CONTENT_TYPE, "Nats-Msg-Id": f"deadletter-{sequence}"}
        await self._bus.publish(self._bus.names.subject("redelivery", consumer), message.data, headers)
        await self._delete(sequence)

    async def _delete(self, sequence: int) -> None:
        try:
            await self._bus.jetstream.delete_msg(self._stream, sequence)
        except nats.js.errors.NotFoundError:
            return
        except (nats.errors.Error, nats.js.errors.Error, TimeoutError) as error:
            raise _unavailable() from error

    async def drop(self, workspace: str) -> int:
        """Forgets those about `workspaces/demo` and what lies in it; returns how many."""
        sequence, count = 1, 0
        while (message := await self._next(sequence)) is not None:
            sequence = message.seq + 1
            resource = _resource(message.data or b"")
            if resource == workspace or resource.startswith(f"{workspace}/"):
                await self._delete(message.seq)
                count += 1
        return count

    async def _next(self, sequence: int) -> Any:
        """The first message from `sequence` on, None at the end."""
        subject = self._bus.names.subject("deadletter", ">")
        try:
            return await self._bus.jetstream.get_msg(self._stream, sequence, subject=subject, next=True)
        except nats.js.errors.NotFoundError:
            return None
        except (nats.errors.Error, nats.js.errors.Error, TimeoutError) as error:
            raise _unavailable() from error


def _to_proto(message: Any) -> telemetry_pb2.DeadLetter:
    headers = message.headers or {}
    letter = telemetry_pb2.DeadLetter(
        sequence=message.seq,
        consumer=headers.get("Stellwerk-Consumer") or message.subject.rsplit(".", 1)[-1],
        error=headers.get("Stellwerk-Error", ""),
        cloud_event=(message.data or b"").decode(errors="replace"),
    )
    if message.time is not None:
        letter.time.FromDatetime(message.time.astimezone(UTC))
    return letter


def _resource(body: bytes) -> str:
    """The resource that an event is about, "" for what is no event."""
    try:
        return str(json.loads(body)["subject"])
    except (ValueError, KeyError, TypeError):
        return ""


def _unavailable() -> Unavailable:
    return Unavailable("NATS_UNAVAILABLE", "The dead letters cannot be read or changed now.", "Try again.")
