"""The living connections to agents."""

import asyncio
from collections.abc import AsyncIterator

from stellwerk_protos.compute.v1 import agents_pb2


class Session:
    """One connection: what is to be sent to it, and which tokens it got when."""

    def __init__(self, node: str) -> None:
        self.node = node
        # When the token of each allocation that was sent here is to be renewed.
        self.token_renew_times: dict[str, float] = {}
        self._wanted: asyncio.Queue[str] = asyncio.Queue()
        self._queued: set[str] = set()
        self._in_hand = ""
        self._outbox: asyncio.Queue[agents_pb2.ConnectResponse | None] = asyncio.Queue()
        self.closed = False

    def want(self, allocation: str) -> None:
        """Has an allocation sent here in turn, unless it waits for that or is being sent."""
        if allocation not in self._queued and allocation != self._in_hand:
            self._queued.add(allocation)
            self._wanted.put_nowait(allocation)

    async def next_wanted(self) -> str:
        """The next allocation to send; with the call after it, it counts as sent or let go."""
        self._in_hand = ""
        self._in_hand = await self._wanted.get()
        self._queued.discard(self._in_hand)
        return self._in_hand

    def want_once(self, allocation: str) -> None:
        """The same, unless it was sent: several notice that it is to go, in any order."""
        if allocation not in self.token_renew_times:
            self.want(allocation)

    def send(self, response: agents_pb2.ConnectResponse) -> None:
        """Sends a message in turn."""
        self._outbox.put_nowait(response)

    def close(self) -> None:
        """Ends the stream after what was sent so far."""
        self.closed = True
        self._outbox.put_nowait(None)

    async def responses(self) -> AsyncIterator[agents_pb2.ConnectResponse]:
        """What to send, until closed."""
        while (response := await self._outbox.get()) is not None:
            yield response


class Sessions:
    """The connections of this process by node; a node's newest connection replaces the one before."""

    def __init__(self) -> None:
        self._by_node: dict[str, Session] = {}

    def add(self, session: Session) -> None:
        """Makes this the connection of its node."""
        before = self._by_node.get(session.node)
        self._by_node[session.node] = session
        if before is not None:
            before.close()

    def remove(self, session: Session) -> None:
        """Forgets a connection that ended."""
        if self._by_node.get(session.node) is session:
            del self._by_node[session.node]

    def assign(self, node: str, allocation: str) -> None:
        """Has an allocation sent to its node, now or when its agent announces itself."""
        if (session := self._by_node.get(node)) is not None:
            session.want_once(allocation)

    def cancel(self, node: str, cancellation: agents_pb2.Cancellation) -> None:
        """Asks a node to stop an allocation, now or when it announces itself."""
        if (session := self._by_node.get(node)) is not None:
            session.send(agents_pb2.ConnectResponse(cancellation=cancellation))

    async def close(self) -> None:
        """Ends all connections, so that the server need not wait for them."""
        for session in self._by_node.values():
            session.close()
