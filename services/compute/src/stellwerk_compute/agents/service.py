"""The connection of an agent: announcement, assignments, reports, leases."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import grpc

from stellwerk_compute.agents.reconcile import Reconciler
from stellwerk_compute.agents.session import Session, Sessions
from stellwerk_compute.allocations import domain
from stellwerk_compute.allocations.store import AllocationStore
from stellwerk_compute.nodes import domain as node_rules
from stellwerk_compute.nodes.store import NodeStore
from stellwerk_platform.auth import current_caller
from stellwerk_platform.errors import InvalidArgument, NotFound, PermissionDenied, PlatformError, from_rpc
from stellwerk_protos.compute.v1 import agents_pb2, agents_pb2_grpc, computes_pb2
from stellwerk_protos.secrets.v1 import tokens_pb2, tokens_pb2_grpc

log = logging.getLogger(__name__)
_RETRY_SECONDS = 0.5


class AgentService(agents_pb2_grpc.AgentServiceServicer):
    """Holds the stream of every agent."""

    def __init__(
        self,
        nodes: NodeStore,
        allocations: AllocationStore,
        sessions: Sessions,
        tokens: "tokens_pb2_grpc.TokenServiceAsyncStub",
        wake: Callable[[], None],
    ) -> None:
        self._nodes = nodes
        self._allocations = allocations
        self._sessions = sessions
        self._tokens = tokens
        self._wake = wake
        self._reconciler = Reconciler(allocations, wake)

    async def Connect(
        self, request_iterator: AsyncIterator[agents_pb2.ConnectRequest], context: Any
    ) -> AsyncIterator[agents_pb2.ConnectResponse]:
        """Serves one agent until it leaves or a newer connection of its node takes over."""
        requests = aiter(request_iterator)
        announcement = (await anext(requests, agents_pb2.ConnectRequest())).announcement
        node_rules.check(announcement)
        _check_caller(announcement.node)
        async with self._session(announcement, requests) as session:
            async for response in session.responses():
                yield response

    @asynccontextmanager
    async def _session(
        self, announcement: agents_pb2.Announcement, requests: AsyncIterator[agents_pb2.ConnectRequest]
    ) -> AsyncIterator[Session]:
        session = Session(announcement.node)
        self._sessions.add(session)
        tasks = [
            asyncio.create_task(self._read(session, announcement, requests)),
            asyncio.create_task(self._assign(session)),
        ]
        for task in tasks:
            task.add_done_callback(lambda _: session.close())
        try:
            yield session
        finally:
            self._sessions.remove(session)
            for task in tasks:
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, Exception) and not isinstance(result, grpc.aio.BaseError):
                    raise result

    async def _read(
        self,
        session: Session,
        announcement: agents_pb2.Announcement,
        requests: AsyncIterator[agents_pb2.ConnectRequest],
    ) -> None:
        await self._nodes.announce(announcement)
        log.info("%s has connected with %d allocations", session.node, len(announcement.allocations))
        await self._reconciler.announced(session, set(announcement.allocations))
        self._wake()
        async for request in requests:
            if session.closed:
                return
            kind = request.WhichOneof("message")
            if kind == "report":
                await self._report(session, request.report)
            elif kind == "heartbeat":
                # Announced anew: a node that was judged silent while this process stalled is back now.
                lease_end = await self._nodes.announce(announcement)
                beat = request.heartbeat
                await self._reconciler.beat(session, set(beat.allocations), beat.cpu_seconds)
                session.send(_heartbeat_ack(lease_end))
            else:
                raise InvalidArgument(
                    "INVALID_MESSAGE",
                    "An agent announces itself once, then sends reports and heartbeats.",
                    "Update the agent.",
                )

    async def _report(self, session: Session, report: agents_pb2.Report) -> None:
        try:
            allocation = await self._allocations.change(
                report.allocation, self._reconciler.reported(session.node, report)
            )
        except NotFound:
            log.warning("%s reports on %s, which does not exist", session.node, report.allocation)
        else:
            if allocation.state in domain.TERMINAL:
                session.token_renew_times.pop(allocation.name, None)
                self._wake()
        ack = agents_pb2.ReportAck(allocation=report.allocation, sequence=report.sequence)
        session.send(agents_pb2.ConnectResponse(report_ack=ack))

    async def _assign(self, session: Session) -> None:
        """Sends assignments, each with a token made for it now: tokens are never stored."""
        while True:
            name = await session.next_wanted()
            held = await self._allocations.find(name)
            if held is None or not _lives_on(held.allocation, session.node):
                continue
            token = await self._issue(held.allocation)
            # Again, for that may have taken long: a cancellation in between has found nothing to cancel.
            held = await self._allocations.find(name)
            if token is None or held is None or not _lives_on(held.allocation, session.node):
                continue
            expire_time = token.expire_time.seconds
            session.token_renew_times[name] = time.time() + (expire_time - time.time()) / 2
            assignment = agents_pb2.Assignment(
                allocation=held.allocation, token=token.token, traceparent=held.beside.traceparent
            )
            session.send(agents_pb2.ConnectResponse(assignment=assignment))

    async def _issue(self, allocation: computes_pb2.Allocation) -> tokens_pb2.Token | None:
        """Waits for `secrets`; None when it refuses: the others go on, and the next heartbeat asks anew."""
        owner = allocation.owner
        request = tokens_pb2.IssueWorkloadTokenRequest(owner=owner, secrets=allocation.workload.secrets)
        while True:
            try:
                return await self._tokens.IssueWorkloadToken(request, timeout=10)
            except grpc.aio.AioRpcError as error:
                failure = from_rpc(error)
            except PlatformError as error:
                failure = error
            log.warning("No token for %s now: %s", owner, failure)
            if not failure.retryable:
                return None
            await asyncio.sleep(_RETRY_SECONDS)


def _check_caller(node: str) -> None:
    caller = current_caller()
    if caller.role == "Node" and caller.subject != node:
        raise PermissionDenied(
            "PERMISSION_DENIED",
            f"{caller.subject} may not announce {node}.",
            "Start the agent with the credentials of its own node.",
        )


def _lives_on(allocation: computes_pb2.Allocation, node: str) -> bool:
    return allocation.node == node and allocation.state not in domain.TERMINAL


def _heartbeat_ack(lease_end: datetime) -> agents_pb2.ConnectResponse:
    response = agents_pb2.ConnectResponse()
    response.heartbeat_ack.lease_expire_time.FromDatetime(lease_end)
    return response
