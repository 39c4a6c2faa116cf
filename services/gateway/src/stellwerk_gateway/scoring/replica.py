"""One replica: its connections, how many requests it has, and whether it is fit for more."""

import asyncio
import contextlib
import functools
import logging
import os
import ssl
import time
from collections.abc import Callable, Iterator

import grpc

from stellwerk_gateway.scoring.access import Issue
from stellwerk_gateway.scoring.connection import Connection
from stellwerk_gateway.scoring.counters import Counters
from stellwerk_gateway.scoring.usage import Usage
from stellwerk_platform import names, replica_tls
from stellwerk_platform.errors import PlatformError
from stellwerk_protos.inference.v1 import endpoints_pb2 as pb

log = logging.getLogger(__name__)
# Less than the scorer's, so that it is never the one that closes.
_KEEP_ALIVE_SECONDS = 60.0
_CONNECT_SECONDS = 2.0
# With TLS the replica has to answer, which may have something else to do.
_HANDSHAKE_SECONDS = 5.0
# So long the health of a replica waits for the token that shows its usage.
_TOKEN_SECONDS = 1.0
# So many failures in a row, of which none was a refused connection, take a replica out.
_FAILURES = 3
_FIRST_EJECTION_SECONDS, _LONGEST_EJECTION_SECONDS = 1.0, 30.0
# After so long without another ejection the next one counts as the first.
_FORGIVEN_SECONDS = 60.0


class Replica:
    """A replica as this process sees it; `issue` gives the token of its endpoint."""

    def __init__(
        self, message: pb.Replica, counters: Counters, changed: Callable[[], None], issue: Issue
    ) -> None:
        self.name = message.name
        self.address = message.http_address
        self.certificate = message.certificate
        self.in_flight = 0
        # As it said last.
        self.usage = Usage()
        # Out after failures until a probe succeeds, and not before this time of the monotonic clock.
        self.is_out = False
        self.out_until = 0.0
        self.probe_wanted = asyncio.Event()
        self._counters = counters
        self._changed = changed
        self._failures = 0
        self._ejections = 0
        self._left = False
        self._issue = issue
        self._was_refused = False
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()

    # Connections

    def idle(self) -> Connection | None:
        """A connection that can be used at once."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open and time.monotonic() - connection.idle_since < _KEEP_ALIVE_SECONDS:
                return connection
            connection.abandon()
        return None

    async def connect(self) -> Connection:
        """A new connection; raises `OSError`."""
        last: OSError = ConnectionRefusedError(f"{self.name} has no address")
        for place in _places(self.address):
            try:
                connection = await self._open(place)
            except OSError as error:
                last = error
            else:
                self._all.add(connection)
                return connection
        raise last

    async def _open(self, place: str | tuple[str, int]) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            if isinstance(place, str):
                async with asyncio.timeout(_CONNECT_SECONDS):
                    return (await loop.create_unix_connection(lambda: Connection(self), place))[1]
            if replica_tls.is_in_clear(place[0]):
                async with asyncio.timeout(_CONNECT_SECONDS):
                    return (await loop.create_connection(lambda: Connection(self), *place))[1]
            async with asyncio.timeout(_HANDSHAKE_SECONDS):
                return await self._open_secured(place)
        except TimeoutError:
            raise ConnectionError(f"{self.address} takes no connection") from None

    async def _open_secured(self, place: tuple[str, int]) -> Connection:
        """Over TLS with the one certificate that its node has announced, or not at all."""
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(lambda: Connection(self), *place, ssl=self._trust)
        except ssl.SSLError as error:
            if not self._was_refused:
                # Once, for it is asked again all the time.
                log.warning("%s at %s does not show its certificate: %s", self.name, self.address, error)
            self._was_refused = True
            raise
        self._was_refused = False
        return connection

    @functools.cached_property
    def _trust(self) -> ssl.SSLContext:
        return replica_tls.context_of(self.certificate)

    async def authorization(self) -> str:
        """What opens the usage of a replica in a network; empty where nothing is needed, or now to be had."""
        if not self.certificate:
            return ""
        with contextlib.suppress(TimeoutError, PlatformError, grpc.RpcError):
            async with asyncio.timeout(_TOKEN_SECONDS):
                return f"Bearer {await self._issue(names.parent_of(self.name, 2))}"
        return ""

    def freed(self, connection: Connection) -> None:
        """Keeps a connection for the next request."""
        if self._left:
            connection.abandon()
            return
        connection.idle_since = time.monotonic()
        self._idle.append(connection)

    def closed(self, connection: Connection) -> None:
        """Forgets a connection."""
        self._all.discard(connection)
        with contextlib.suppress(ValueError):
            self._idle.remove(connection)

    def leave(self) -> None:
        """Takes no more requests; those under way end."""
        self._left = True
        while self._idle:
            self._idle.pop().abandon()

    def close(self) -> None:
        """Breaks off everything."""
        self.leave()
        for connection in list(self._all):
            connection.abandon()

    def trim(self) -> None:
        """Closes connections that were not used for long."""
        limit = time.monotonic() - _KEEP_ALIVE_SECONDS
        while self._idle and self._idle[0].idle_since < limit:
            self._idle.pop(0).abandon()

    # Fitness

    def worked(self) -> None:
        """A request was answered, whatever the answer says."""
        self._failures = 0

    def failed(self, *, refused: bool, others: bool) -> None:
        """A request got no answer; the last fit replica is only taken out if it refuses connections."""
        self._failures += 1
        if refused or (others and self._failures >= _FAILURES):
            self.eject(0.0 if refused else None)

    def eject(self, seconds: float | None = None) -> None:
        """Takes it out until a probe succeeds, for at least `seconds`; None: longer each time."""
        if self.is_out:
            return
        now = time.monotonic()
        if now - self.out_until > _FORGIVEN_SECONDS:
            self._ejections = 0
        if seconds is None:
            seconds = min(_FIRST_EJECTION_SECONDS * 2**self._ejections, _LONGEST_EJECTION_SECONDS)
        self._ejections += 1
        self._counters.ejections += 1
        self.is_out, self.out_until = True, now + seconds
        self.probe_wanted.set()

    def readmit(self) -> None:
        """Lets it have requests again."""
        self._failures = 0
        self.is_out = False
        self._changed()


def _places(address: str) -> Iterator[str | tuple[str, int]]:
    """Where a replica listens, the cheapest first: `unix:/path` if it is on this node, `host:port`."""
    places = [place.strip() for place in address.split(",") if place.strip()]
    for place in sorted(places, key=lambda place: not place.startswith("unix:")):
        if place.startswith("unix:"):
            if os.path.exists(place[5:]):
                yield place[5:]
        else:
            host, _, port = place.rpartition(":")
            if port.isdigit():
                yield host.strip("[]"), int(port)
