"""Copies of requests for deployments that are to be watched under real traffic.

A copy is sent when its deployment has room and nobody else waits there; the answer is
read and thrown away. What finds no room waits in a short queue, and is dropped when that
is full: a copy never costs a request anything.
"""

from collections import deque
from collections.abc import Sequence

from stellwerk_gateway.asgi import Header
from stellwerk_gateway.scoring.call import Call
from stellwerk_gateway.scoring.deployment import Deployment
from stellwerk_gateway.scoring.replica import Replica
from stellwerk_platform.errors import PlatformError

MAX_RUNNING = 32
MAX_QUEUED = 100
_SECONDS = 60.0


class Mirrors:
    """The copies of this process."""

    def __init__(self) -> None:
        self._running: dict[Deployment, int] = {}
        self._queued: dict[Deployment, deque[bytes]] = {}

    def send(self, deployments: Sequence[Deployment], request: bytes | None) -> None:
        """Copies a request, which is None if it is not all there."""
        self._forget_the_gone()
        for deployment in deployments:
            queue = self._queued.setdefault(deployment, deque())
            if request is None or len(queue) >= MAX_QUEUED or not deployment.is_fit:
                deployment.counters.mirror_dropped += 1
                continue
            queue.append(request)
            self._start(deployment)

    def ended(self, deployment: Deployment) -> None:
        """A copy has been answered, or not."""
        self._running[deployment] -= 1
        self._start(deployment)
        if not self._running[deployment]:
            # Nothing is kept for deployments that are gone.
            del self._running[deployment]
            dropped = self._queued.pop(deployment)
            deployment.counters.mirror_dropped += len(dropped)

    def _forget_the_gone(self) -> None:
        gone = [item for item in self._queued if not item.replicas and item not in self._running]
        for deployment in gone:
            deployment.counters.mirror_dropped += len(self._queued.pop(deployment))

    def _start(self, deployment: Deployment) -> None:
        queue = self._queued[deployment]
        while queue and self._running.get(deployment, 0) < MAX_RUNNING:
            replica = deployment.take_spare()
            if replica is None:
                break
            self._running[deployment] = self._running.get(deployment, 0) + 1
            deployment.counters.mirrored += 1
            _Copy(self, deployment, replica, queue.popleft())


class _Copy(Call):
    """One copy; whatever comes of it, nobody hears of it."""

    def __init__(self, mirrors: Mirrors, deployment: Deployment, replica: Replica, data: bytes) -> None:
        super().__init__(park_seconds=0.0)
        self._mirrors = mirrors
        self._data = data
        self.deployment = deployment
        self.is_repeatable = False
        self.start_clock(min(_SECONDS, deployment.timeout_seconds))
        self.granted(replica)

    def request(self, deployment: Deployment) -> tuple[bytes, bool]:
        return self._data, True

    def head(self, status: int, headers: Sequence[Header], length: int | None) -> None:
        pass

    def finish(self) -> None:
        self._end()

    def fail(self, error: PlatformError) -> None:
        self._end()

    def _end(self) -> None:
        assert self.deployment is not None
        self._mirrors.ended(self.deployment)
