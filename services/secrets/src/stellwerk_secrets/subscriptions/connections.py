"""The living connections of subscribers, as the NATS servers list them, and their end."""

import json
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import nats.errors

from stellwerk_platform.bus import Bus
from stellwerk_secrets.subscriptions import domain

log = logging.getLogger(__name__)
# Servers of a cluster answer one by one; the last one has answered when none does for so long.
_SILENCE_SECONDS = 0.25
_ASK_SECONDS = 2.0
_PAGE = 1_024
_MAXIMUM = 100_000


@dataclass(frozen=True)
class Connection:
    """A client's connection to a server."""

    server: str
    id: int
    # What it was let in with.
    label: str
    age_seconds: float

    @property
    def consumer(self) -> str:
        """Whose it is."""
        return self.label.partition(":")[0]


class Connections:
    """What the system account of NATS lets `secrets` see and do."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def all(self) -> list[Connection]:
        """All connections of subscribers, of this namespace and of others."""
        found: list[Connection] = []
        for offset in range(0, _MAXIMUM, _PAGE):
            total = 0
            async for answer in self._ask(offset):
                total = max(total, int(answer.get("total", 0)))
                found += _connections(answer)
            if total <= offset + _PAGE:
                break
        return found

    async def _ask(self, offset: int) -> AsyncIterator[dict[str, Any]]:
        query = {"acc": domain.ACCOUNT, "auth": True, "limit": _PAGE, "offset": offset}
        inbox = self._bus.client.new_inbox()
        subscription = await self._bus.client.subscribe(inbox)
        try:
            await self._bus.client.publish(
                "$SYS.REQ.SERVER.PING.CONNZ", json.dumps(query).encode(), reply=inbox
            )
            wait_seconds = _ASK_SECONDS
            while True:
                message = await subscription.next_msg(timeout=wait_seconds)
                wait_seconds = _SILENCE_SECONDS
                if message.data:
                    yield json.loads(message.data).get("data") or {}
        except (nats.errors.Error, TimeoutError):
            return
        finally:
            await subscription.unsubscribe()

    async def end(self, connection: Connection) -> None:
        """Closes a connection; its client connects again, if it may."""
        log.info("The connection of %s ends", connection.label)
        body = json.dumps({"cid": connection.id}).encode()
        # Should the answer get lost, the next sweep finds what is still connected.
        with suppress(nats.errors.Error, TimeoutError):
            await self._bus.client.request(
                f"$SYS.REQ.SERVER.{connection.server}.KICK", body, timeout=_ASK_SECONDS
            )


def _connections(answer: dict[str, Any]) -> list[Connection]:
    now = datetime.fromisoformat(answer["now"])
    return [
        Connection(
            server=str(answer["server_id"]),
            id=int(item["cid"]),
            label=str(item.get("authorized_user", "")),
            age_seconds=(now - datetime.fromisoformat(item["start"])).total_seconds(),
        )
        for item in answer.get("connections") or ()
    ]
