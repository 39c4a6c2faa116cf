"""One deployment behind an endpoint: its replicas, and the requests that wait for one of them."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from stellwerk_gateway.scoring.access import Issue
from stellwerk_gateway.scoring.counters import Counters
from stellwerk_gateway.scoring.health import watch
from stellwerk_gateway.scoring.replica import Replica
from stellwerk_platform.errors import PlatformError, ResourceExhausted, Unavailable
from stellwerk_protos.inference.v1 import endpoints_pb2 as pb

# What 0 in `pb.RequestSettings` stands for; docs/contracts/open-inference.md.
TIMEOUT_MS = 65_000
MAX_CONCURRENT = 100
MAX_QUEUED = 1_000


class Waiter(Protocol):
    """A request that wants a replica; `began` is of `time.perf_counter`."""

    began: float

    def granted(self, replica: Replica) -> None:
        """It may have this one."""

    def refused(self, error: PlatformError) -> None:
        """There will be none."""


class Deployment:
    """A deployment as this process sees it; `wake` is called when a request waits although it sleeps."""

    def __init__(
        self,
        name: str,
        default_timeout_seconds: float,
        wake: "Callable[[Deployment], None]",
        issue: Issue,
    ) -> None:
        self.name = name
        self.id = name.rsplit("/", 1)[1]
        self.counters = Counters()
        self.replicas: list[Replica] = []
        self.is_starting = False
        # No replica runs, because nobody asked; the first request starts one.
        self.is_asleep = False
        self._wake_up = wake
        self._issue = issue
        self.timeout_seconds = default_timeout_seconds
        self.max_concurrent = MAX_CONCURRENT
        self.max_queued = MAX_QUEUED
        self.retries_lost = False
        self.in_flight = 0
        self._default_timeout_seconds = default_timeout_seconds
        self._turn = 0
        # Since when, of `time.perf_counter`, requests wait for the first replica; None: they do not.
        self._cold_since: float | None = None
        self._waiting: OrderedDict[Waiter, None] = OrderedDict()
        self._probes: dict[Replica, asyncio.Task[None]] = {}

    @property
    def queued(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    @property
    def is_fit(self) -> bool:
        """Whether a replica can take requests, now or when another request ends."""
        return any(not replica.is_out for replica in self.replicas)

    @property
    def may_come(self) -> bool:
        """Whether waiting for a replica may help although none is fit."""
        return self.is_starting or self.is_asleep or bool(self.replicas)

    def oldest_seconds(self) -> float:
        """How long the first of those that wait has been here; 0 when nobody waits."""
        first = next(iter(self._waiting), None)
        return time.perf_counter() - first.began if first is not None else 0.0

    def update(self, target: pb.Target) -> None:
        """Takes over what `inference` says; replicas that stay keep their connections and counts."""
        settings = target.settings
        self.timeout_seconds = (settings.timeout_ms / 1000) or self._default_timeout_seconds
        self.max_concurrent = settings.max_concurrent_requests or MAX_CONCURRENT
        self.max_queued = settings.max_queued_requests or MAX_QUEUED
        self.retries_lost = settings.retry_lost_requests
        self.is_starting = target.starting
        self.is_asleep = target.asleep
        self._set_replicas(target.replicas)
        if self.replicas and self._cold_since is not None:
            self.counters.cold_starts += 1
            self.counters.cold_start_seconds += time.perf_counter() - self._cold_since
            self._cold_since = None
        self.wake()

    def _set_replicas(self, wanted: Sequence[pb.Replica]) -> None:
        known = {(replica.name, replica.address, replica.certificate): replica for replica in self.replicas}
        self.replicas = [
            known.get((replica.name, replica.http_address, replica.certificate))
            or Replica(replica, self.counters, self.wake, self._issue)
            for replica in wanted
        ]
        for gone in set(known.values()) - set(self.replicas):
            gone.leave()
            self._probes.pop(gone).cancel()
        for replica in self.replicas:
            if replica not in self._probes:
                self._probes[replica] = asyncio.create_task(watch(replica))

    def close(self) -> None:
        """Gives up everything: nobody routes to it any more."""
        self._set_replicas(())
        self.is_starting = self.is_asleep = False
        self.wake()

    async def stop(self) -> None:
        """Ends all that runs for it."""
        probes = list(self._probes.values())
        for replica in self.replicas:
            replica.close()
        self.close()
        await asyncio.gather(*probes, return_exceptions=True)

    # Turns

    def take(self, waiter: Waiter, tried: Collection[Replica] = ()) -> Replica | None:
        """A replica that has room, now; None: `waiter` waits and will be told.

        Raises `ResourceExhausted` when too many wait, `Unavailable` when none can come.
        A request that has been at a replica already does not wait again behind the others.
        """
        if tried or not self._waiting:
            # Another one if there is one; one that was tried may work again over a new connection.
            replica = self._pick(tried) or self._pick(())
            if replica is not None:
                self._lend(replica)
                return replica
        if not self.may_come:
            raise self.none_ready()
        if len(self._waiting) >= self.max_queued:
            raise queue_full(self.id, self.max_queued)
        self._waiting[waiter] = None
        if tried:
            self._waiting.move_to_end(waiter, last=False)
        if self.is_asleep:
            self._cold_since = self._cold_since or time.perf_counter()
            self._wake_up(self)
        return None

    def take_spare(self) -> Replica | None:
        """A replica with room that nobody waits for."""
        replica = None if self._waiting else self._pick(())
        if replica is not None:
            self._lend(replica)
        return replica

    def give_back(self, replica: Replica) -> None:
        """A request has left a replica."""
        replica.in_flight -= 1
        self.in_flight -= 1
        if self._waiting:
            self.wake()

    def forget(self, waiter: Waiter) -> None:
        """A request does not wait any longer."""
        self._waiting.pop(waiter, None)

    def wake(self) -> None:
        """Gives replicas that have room to those who wait."""
        while self._waiting and (replica := self._pick(())) is not None:
            waiter, _ = self._waiting.popitem(last=False)
            self._lend(replica)
            waiter.granted(replica)
        if self._waiting and not self.may_come:
            error = self.none_ready()
            while self._waiting:
                self._waiting.popitem(last=False)[0].refused(error)

    def none_ready(self) -> Unavailable:
        """The error while nobody can answer."""
        return Unavailable(
            "NO_READY_REPLICA",
            f"No replica of {self.name} is ready.",
            "Wait for its deployment, or see its state: `stellwerk deployment list`.",
        )

    def _lend(self, replica: Replica) -> None:
        replica.in_flight += 1
        self.in_flight += 1

    def _pick(self, tried: Collection[Replica]) -> Replica | None:
        """The fit replica with the fewest requests; in turn among equals."""
        best: Replica | None = None
        fewest = self.max_concurrent
        count = len(self.replicas)
        for offset in range(count):
            index = (self._turn + offset) % count
            replica = self.replicas[index]
            if replica.in_flight < fewest and not replica.is_out and replica not in tried:
                best, fewest, chosen = replica, replica.in_flight, index
                if fewest == 0:
                    break
        if best is not None:
            self._turn = chosen + 1
        return best


def queue_full(deployment: str, limit: int) -> ResourceExhausted:
    """The error for a request that may not even wait."""
    return ResourceExhausted(
        "QUEUE_FULL",
        f"{limit:,} requests wait for {deployment} already.",
        "Try again in a moment, add replicas, or allow more to wait.",
    )
