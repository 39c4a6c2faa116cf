"""The agent's one connection to compute: it comes back by itself and repeats what was not acknowledged."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol

import grpc

from stellwerk_agent.calls import FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS
from stellwerk_agent.config import Settings
from stellwerk_platform.errors import PlatformError, from_rpc
from stellwerk_protos.compute.v1 import agents_pb2, agents_pb2_grpc

log = logging.getLogger(__name__)
_Outbox = asyncio.Queue["agents_pb2.ConnectRequest | None"]
_FIRST_BEAT_SECONDS = 1.0
# Bounds, because the end of a lease is told by another machine's clock.
_SHORTEST_BEAT_SECONDS, _LONGEST_BEAT_SECONDS = 0.1, 10.0
_STALL_SECONDS = 10.0


class Holder(Protocol):
    """Who holds the allocations of this node."""

    def held(self) -> list[str]:
        """Their names."""

    async def cpu_seconds(self) -> dict[str, float]:
        """What each of them has used so far."""

    def unacknowledged(self) -> list[agents_pb2.Report]:
        """Reports that compute may not have, in order."""

    def assign(self, assignment: agents_pb2.Assignment) -> None:
        """Takes work, or a new token for work that it holds."""

    def cancel(self, cancellation: agents_pb2.Cancellation) -> None:
        """Stops an allocation."""

    def acknowledge(self, ack: agents_pb2.ReportAck) -> None:
        """Forgets a report that compute has stored."""


class Connection:
    """Announces the node, beats, sends reports and hands on what compute says."""

    def __init__(
        self, stub: "agents_pb2_grpc.AgentServiceAsyncStub", settings: Settings, holder: Holder
    ) -> None:
        self._stub = stub
        self._settings = settings
        self._holder = holder
        self._outbox: _Outbox | None = None
        self._beat_seconds = _FIRST_BEAT_SECONDS
        self._heard_time = 0.0
        self._ready_file: Path = settings.folder / "ready"
        self._ready_file.unlink(missing_ok=True)

    def send(self, report: agents_pb2.Report) -> None:
        """Sends a report now if connected, else when connected again."""
        if self._outbox is not None:
            self._outbox.put_nowait(agents_pb2.ConnectRequest(report=report))

    async def run(self) -> None:
        """For ever."""
        delay = FIRST_DELAY_SECONDS
        while True:
            began = time.monotonic()
            try:
                await self._stream()
                reason = "compute ended the connection"
            except grpc.aio.AioRpcError as error:
                reason = str(from_rpc(error))
            except PlatformError as error:
                reason = str(error)
            # A connection that held for a while is renewed at once.
            delay = FIRST_DELAY_SECONDS if self._heard_time > began else min(delay * 2, LONGEST_DELAY_SECONDS)
            log.warning("Not connected to compute: %s; again in %.1f s", reason, delay)
            await asyncio.sleep(delay)

    async def _stream(self) -> None:
        outbox: _Outbox = asyncio.Queue()
        settings = self._settings
        announcement = agents_pb2.Announcement(
            node=settings.agent_node,
            pool=settings.agent_pool,
            slots=settings.agent_slots,
            allocations=self._holder.held(),
        )
        outbox.put_nowait(agents_pb2.ConnectRequest(announcement=announcement))
        for report in self._holder.unacknowledged():
            outbox.put_nowait(agents_pb2.ConnectRequest(report=report))
        self._outbox = outbox
        call = self._stub.Connect(_drain(outbox))
        beating = asyncio.create_task(self._beat(outbox, call))
        try:
            async for response in call:
                self._heard_time = time.monotonic()
                try:
                    self._handle(response)
                except Exception:
                    # What concerns one allocation must not end the connection of all.
                    log.exception("A %s could not be handled", response.WhichOneof("message"))
        except asyncio.CancelledError:
            if not beating.done() or beating.cancelled():
                raise
        finally:
            self._outbox = None
            outbox.put_nowait(None)
            call.cancel()
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)

    async def _beat(self, outbox: _Outbox, call: Any) -> None:
        """Renews the leases, and gives up a connection on which nothing is answered."""
        connected_time = time.monotonic()
        while True:
            used = await self._holder.cpu_seconds()
            heartbeat = agents_pb2.Heartbeat(allocations=self._holder.held(), cpu_seconds=used)
            outbox.put_nowait(agents_pb2.ConnectRequest(heartbeat=heartbeat))
            await asyncio.sleep(self._beat_seconds)
            silent_seconds = time.monotonic() - max(self._heard_time, connected_time)
            if silent_seconds > _STALL_SECONDS + self._beat_seconds:
                call.cancel()
                return

    def _handle(self, response: agents_pb2.ConnectResponse) -> None:
        kind = response.WhichOneof("message")
        if kind == "assignment":
            self._holder.assign(response.assignment)
        elif kind == "cancellation":
            self._holder.cancel(response.cancellation)
        elif kind == "report_ack":
            self._holder.acknowledge(response.report_ack)
        elif kind == "heartbeat_ack":
            lease_seconds = response.heartbeat_ack.lease_expire_time.ToMicroseconds() / 1e6 - time.time()
            self._beat_seconds = min(max(lease_seconds / 3, _SHORTEST_BEAT_SECONDS), _LONGEST_BEAT_SECONDS)
            self._ready_file.touch()


async def _drain(outbox: _Outbox) -> AsyncIterator[agents_pb2.ConnectRequest]:
    while (request := await outbox.get()) is not None:
        yield request
