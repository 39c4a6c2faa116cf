"""One request on its way through a deployment: queue, replica, connection, answer, and what goes wrong.

Everything runs in callbacks of the event loop; a task is only made to open a connection.
A subclass says what is sent and where the answer goes.
"""

import asyncio
import time
from collections.abc import Sequence

from stellwerk_gateway.asgi import Header
from stellwerk_gateway.scoring.connection import Connection
from stellwerk_gateway.scoring.counters import CLIENT_GONE, Counters
from stellwerk_gateway.scoring.deployment import Deployment
from stellwerk_gateway.scoring.replica import Replica
from stellwerk_platform.errors import DeadlineExceeded, PlatformError, Unavailable

# A request goes to a replica at most so often.
_MAX_TRIES = 3
# Reasons with which a scorer says that the request has not reached the script, or may have.
_NOT_READY, _FULL, _DIED = b"WORKER_NOT_READY", b"QUEUE_FULL", b"WORKER_DIED"
_HELD_STATUS = frozenset({429, 502, 503})
_HELD_BYTES = 1 << 14


class ReplicaLost(Unavailable):
    """The replica ended, or hung up, while it had the request."""

    http_status = 502


class Call:
    """A request; exactly one of `finish` and `fail` of the subclass is called, unless it is cancelled."""

    # Whether the request may be sent again when it is not known whether the script has run.
    is_idempotent = False

    def __init__(self, park_seconds: float) -> None:
        self.began = time.perf_counter()
        self.deployment: Deployment | None = None
        # Whether the request, as it was sent first, is still all there.
        self.is_repeatable = True
        self._loop = asyncio.get_running_loop()
        self._park_seconds = park_seconds
        self._replica: Replica | None = None
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._tried: list[Replica] = []
        self._timer: asyncio.TimerHandle | None = None
        self._park_timer: asyncio.TimerHandle | None = None
        self._held: tuple[int, Sequence[Header], int | None] | None = None
        self._held_body = b""
        self._has_head = False
        self._is_over = False

    # For the subclass

    def request(self, deployment: Deployment) -> tuple[bytes, bool]:
        """What is to be sent, and whether that is all of it."""
        raise NotImplementedError

    def head(self, status: int, headers: Sequence[Header], length: int | None) -> None:
        """The answer begins."""

    def body(self, data: bytes) -> None:
        """A part of the answer's body."""

    def flush(self) -> None:
        """What was told so far may be handed on."""

    def finish(self) -> None:
        """The answer is whole."""

    def fail(self, error: PlatformError) -> None:
        """There is no answer but this; after `head` the answer is cut off here."""

    def pause_request(self, yes: bool) -> None:
        """The replica takes no more of the request for now, or does again."""

    # The way

    def send_to(self, deployment: Deployment, timeout_seconds: float | None = None) -> None:
        """Begins; the time runs from now, or once `start_clock` is called."""
        self.deployment = deployment
        if timeout_seconds is not None:
            self.start_clock(timeout_seconds)
        self._take()

    def start_clock(self, seconds: float) -> None:
        """Ends the request when its time is over."""
        if self._timer is None and not self._is_over:
            self._timer = self._loop.call_later(seconds, self._time_is_over)

    def cancel(self) -> None:
        """Nobody wants the answer any more."""
        if not self._is_over:
            self._leave(broken=True)
            self._close()

    def count(self, status: int, counters: Counters | None = None) -> None:
        """Counts the request, once, where it belongs."""
        counters = counters or (self.deployment.counters if self.deployment is not None else None)
        if counters is not None:
            counters.count(status, time.perf_counter() - self.began)

    def granted(self, replica: Replica) -> None:
        """Sends the request to a replica."""
        self._replica = replica
        connection = replica.idle()
        if connection is not None:
            self._send(connection)
        else:
            self._connecting = self._loop.create_task(self._connect(replica))

    def refused(self, error: PlatformError) -> None:
        """No replica will come."""
        self._give_up(error)

    def _take(self) -> None:
        assert self.deployment is not None
        try:
            replica = self.deployment.take(self, self._tried)
        except PlatformError as error:
            self._give_up(error)
            return
        if replica is not None:
            self.granted(replica)
        elif not self.deployment.is_fit and self._park_timer is None:
            self._park_timer = self._loop.call_later(self._park_seconds, self._park_is_over)

    async def _connect(self, replica: Replica) -> None:
        try:
            connection = await replica.connect()
        except OSError as error:
            if not self._is_over:
                replica.failed(refused=True, others=self._others(replica))
                self._leave()
                self._again(_unreachable(replica, error))
            return
        if self._is_over:
            replica.freed(connection)
        else:
            self._send(connection)

    def _send(self, connection: Connection) -> None:
        assert self.deployment is not None
        self._connection = connection
        data, is_whole = self.request(self.deployment)
        connection.ask(self, data, is_whole=is_whole, is_head=data.startswith(b"HEAD "))

    def _again(self, error: PlatformError) -> None:
        """Tries another replica, or fails with the reason why that is needed."""
        assert self.deployment is not None
        if not self.is_repeatable or len(self._tried) >= _MAX_TRIES:
            self._give_up(error)
            return
        self.deployment.counters.retries += 1
        self._take()

    # Connection's side

    def answer_head(self, status: int, headers: Sequence[Header], length: int | None) -> None:
        """Holds back an answer that may mean that another replica is to be asked."""
        if (
            status in _HELD_STATUS
            and self.is_repeatable
            and (length or 0) <= _HELD_BYTES
            and len(self._tried) < _MAX_TRIES
        ):
            self._held, self._held_body = (status, headers, length), b""
            return
        self._has_head = True
        self.head(status, headers, length)

    def answer_body(self, data: bytes) -> None:
        """Hands on a part of the body."""
        if self._held is None:
            self.body(data)
            return
        self._held_body += data
        if len(self._held_body) > _HELD_BYTES:
            self._release_held()

    def answer_flush(self) -> None:
        """Lets the subclass hand on what it has."""
        if self._has_head:
            self.flush()

    def answer_end(self) -> None:
        """The answer is whole."""
        assert self._replica is not None
        self._connection = None
        if self._held is not None and self._asks_another():
            return
        self._release_held()
        self._replica.worked()
        self._leave()
        self._close()
        self.finish()

    def lost(self, answered: bool) -> None:
        """The replica hung up."""
        replica = self._replica
        assert replica is not None
        assert self.deployment is not None
        self._connection = None
        replica.failed(refused=False, others=self._others(replica))
        self._leave()
        self._held = None
        error = ReplicaLost(
            "REPLICA_LOST",
            "The replica ended while it had the request; whether the script has run is not known.",
            "Send it again if the script may run twice for it; `stellwerk deployment create --retry-lost`"
            " lets the platform do so.",
            {"replica": replica.name},
        )
        if self._has_head or not self._may_run_twice():
            self._give_up(error)
        else:
            self._again(error)

    def writable(self, yes: bool) -> None:
        """Passes on that the replica reads slower, or again."""
        self.pause_request(not yes)

    def _asks_another(self) -> bool:
        """Whether the held answer leads to another replica, or to waiting for one."""
        replica, deployment = self._replica, self.deployment
        assert replica is not None
        assert deployment is not None
        if _NOT_READY in self._held_body:
            replica.eject(0.0)
        elif _DIED in self._held_body:
            replica.failed(refused=False, others=self._others(replica))
            if not self._may_run_twice():
                return False
        elif _FULL not in self._held_body or not self._others(replica):
            return False
        self._held = None
        self._leave()
        self._again(deployment.none_ready())
        return True

    def _may_run_twice(self) -> bool:
        return self.is_idempotent or (self.deployment is not None and self.deployment.retries_lost)

    def _release_held(self) -> None:
        if self._held is not None:
            held, self._held = self._held, None
            self._has_head = True
            self.head(*held)
            self.body(self._held_body)

    # The end

    def _leave(self, *, broken: bool = False) -> None:
        """Gives the replica, or the place in the queue, back."""
        assert self.deployment is not None or self._replica is None
        connection, self._connection = self._connection, None
        if broken and connection is not None:
            connection.abandon()
        replica, self._replica = self._replica, None
        if replica is not None and self.deployment is not None:
            self._tried.append(replica)
            self.deployment.give_back(replica)
        elif self.deployment is not None:
            self.deployment.forget(self)

    def _give_up(self, error: PlatformError) -> None:
        self._close()
        self.fail(error)

    def _close(self) -> None:
        self._is_over = True
        for timer in (self._timer, self._park_timer):
            if timer is not None:
                timer.cancel()

    def _others(self, replica: Replica) -> bool:
        assert self.deployment is not None
        return any(other is not replica and not other.is_out for other in self.deployment.replicas)

    def _time_is_over(self) -> None:
        replica = self._replica
        if self._is_over:
            return
        if replica is not None:
            replica.failed(refused=False, others=self._others(replica))
            message = "The replica did not answer in time."
        else:
            message = "No replica had time for the request before its own time was over."
        self._leave(broken=True)
        self._give_up(
            DeadlineExceeded(
                "SCORING_TIMEOUT", message, "Send less at a time, or raise the deployment's time-out."
            )
        )

    def _park_is_over(self) -> None:
        self._park_timer = None
        deployment = self.deployment
        if self._is_over or self._replica is not None or deployment is None or deployment.is_fit:
            return
        deployment.forget(self)
        self._give_up(deployment.none_ready())


def _unreachable(replica: Replica, error: OSError) -> Unavailable:
    return Unavailable(
        "REPLICA_UNREACHABLE",
        f"No connection to the replica: {error}.",
        "Try again.",
        {"replica": replica.name},
    )


__all__ = ["CLIENT_GONE", "Call", "ReplicaLost"]
