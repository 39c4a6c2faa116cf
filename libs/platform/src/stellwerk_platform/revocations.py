"""Which keys and tokens ended before their time, as `secrets` says: asked for once, then told by the journal.

Without the journal (the connection is away, or has just come back) the list is asked for anew.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

import grpc

from stellwerk_platform.auth import Caller
from stellwerk_platform.errors import PlatformError, Unauthenticated, Unavailable
from stellwerk_platform.journal import decode
from stellwerk_protos.secrets.v1 import tokens_pb2, tokens_pb2_grpc

if TYPE_CHECKING:
    from nats.aio.msg import Msg

    from stellwerk_platform.bus import Bus

log = logging.getLogger(__name__)
Load = Callable[[], Awaitable[Iterable[tokens_pb2.Revocation]]]
# Whose tokens were revoked.
Revoked = Callable[[str], None]
_SECONDS = 10.0
_RETRY_SECONDS = 1.0


def from_secrets(channel: grpc.aio.Channel) -> Load:
    """The list as `secrets` answers it; raises `Unavailable`."""
    stub = tokens_pb2_grpc.TokenServiceStub(channel)

    async def load() -> Iterable[tokens_pb2.Revocation]:
        try:
            return (await stub.ListRevocations(tokens_pb2.ListRevocationsRequest(), timeout=5)).revocations
        except grpc.aio.AioRpcError as error:
            log.warning("secrets does not say what was revoked: %s %s", error.code(), error.details())
            raise Unavailable(
                "SECRETS_UNAVAILABLE",
                "The service that checks keys does not answer.",
                "Try again; see `stellwerk status`.",
            ) from error

    return load


class Revocations:
    """What one process knows to be revoked."""

    def __init__(self, load: Load) -> None:
        self._load = load
        # By subject: tokens issued up to this time are refused, and which change said so.
        self._before: dict[str, tuple[float, int]] = {}
        self._expire: dict[str, float] = {}
        self._loaded = False
        self._lock = asyncio.Lock()
        self._stale = asyncio.Event()
        self._listeners: list[Revoked] = []
        # Counts what became known, so that what is known since can be told from what was before.
        self.changes = 0

    async def ready(self) -> None:
        """Returns once the list is known; raises `Unavailable`."""
        if self._loaded:
            return
        async with self._lock:
            if not self._loaded:
                await self.refresh()

    def check(self, caller: Caller) -> None:
        """Raises `Unauthenticated` for a token that was revoked."""
        for subject in (caller.subject, caller.key):
            before, _ = self._before.get(subject, (-1.0, 0))
            if caller.issue_time <= before:
                raise Unauthenticated(
                    "TOKEN_REVOKED",
                    "The key or token has been revoked.",
                    "Get a new one with `stellwerk login`, or ask an administrator.",
                )

    def changed_since(self, caller: Caller, changes: int) -> bool:
        """Whether something of the caller was revoked after `changes` was read."""
        return any(self._before.get(name, (0.0, 0))[1] > changes for name in (caller.subject, caller.key))

    def listen(self, revoked: Revoked) -> None:
        """Calls `revoked` with the subject of each revocation that becomes known."""
        self._listeners.append(revoked)

    def add(self, revocation: tokens_pb2.Revocation) -> None:
        """Takes a revocation in, once."""
        subject, before = revocation.subject, revocation.before_time.ToMicroseconds() / 1e6
        if before <= self._before.get(subject, (-1.0, 0))[0]:
            return
        self.changes += 1
        self._before[subject] = before, self.changes
        self._expire[subject] = revocation.expire_time.ToMicroseconds() / 1e6
        for revoked in self._listeners:
            revoked(subject)

    async def follow(self, bus: Bus) -> None:
        """Takes in what the journal says, and asks anew when the connection has come back."""

        async def told(message: Msg) -> None:
            revocation = tokens_pb2.Revocation()
            try:
                decode(message.data).load(revocation)
            except (ValueError, KeyError, TypeError):
                log.warning("Not a revocation: %s", message.subject)
                self._stale.set()
                return
            self.add(revocation)

        await bus.client.subscribe(bus.names.subject("journal", "_", "secrets", "revocation", "*"), cb=told)
        bus.on_reconnect(self._stale.set)

    async def run(self, bus: Bus) -> None:
        """Asks for the list at the start, when something may have been missed, and while the bus is away."""
        self._stale.set()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_SECONDS):
                    await self._stale.wait()
            if not self._stale.is_set() and bus.client.is_connected:
                continue
            self._stale.clear()
            try:
                await self.refresh()
            except PlatformError:
                await asyncio.sleep(_RETRY_SECONDS)
                self._stale.set()

    async def refresh(self) -> None:
        """Asks for the list; raises `Unavailable`."""
        revocations = list(await self._load())
        for revocation in revocations:
            self.add(revocation)
        self._forget()
        self._loaded = True

    def _forget(self) -> None:
        """Drops those whose last token has ended."""
        now = time.time()
        for subject in [subject for subject, expires in self._expire.items() if expires < now]:
            del self._before[subject], self._expire[subject]
