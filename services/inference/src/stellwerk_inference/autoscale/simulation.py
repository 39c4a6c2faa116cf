"""What other settings would have made of a recorded load: the rules of `domain.py`, and a queue in place
of replicas.

A replica works on as many requests at a time as it has worker processes, each for the same
time. Requests come evenly within their second. Time goes by in tenths of a second; decisions fall once
a second, as in life.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from stellwerk_inference.autoscale.domain import Observation, Scaler, Settings

_STEPS = 10
_STEP_SECONDS = 1 / _STEPS
_NOTHING = 1e-9


@dataclass(frozen=True)
class Load:
    """Requests by second, the seconds that each takes, and how many a replica works on at a time."""

    arrivals: Sequence[int]
    service_seconds: float
    parallel: int = 1


@dataclass
class Step:
    """One second of the outcome."""

    replicas: int
    ready: int
    arrivals: int
    queued: float


@dataclass
class Outcome:
    """What would have been."""

    seconds: list[Step] = field(default_factory=list)
    replica_seconds: float = 0.0
    queue_seconds: float = 0.0
    longest_queue_seconds: float = 0.0
    decisions: int = 0


def simulate(settings: Settings, load: Load, start_seconds: float) -> Outcome:
    """Plays a load; a replica answers `start_seconds` after it was decided on."""
    scaler, queue, outcome = Scaler(settings), _Queue(), Outcome()
    # When each replica answers, oldest first.
    replicas = [0.0] * settings.min_replicas
    for second, arrivals in enumerate(load.arrivals):
        seen = _play(second, arrivals, load, replicas, queue, outcome)
        count = scaler.decide(len(replicas), seen)
        outcome.decisions += count != len(replicas)
        ready_time = seen.time_seconds + start_seconds
        replicas = replicas[:count] + [ready_time] * (count - len(replicas))
        outcome.seconds.append(Step(len(replicas), seen.ready_replicas, arrivals, queue.size))
    return outcome


def _play(
    second: int, arrivals: int, load: Load, replicas: Sequence[float], queue: "_Queue", outcome: Outcome
) -> Observation:
    """One second with these replicas."""
    concurrency, longest, ready = 0.0, 0.0, 0
    for step in range(_STEPS):
        now = second + step * _STEP_SECONDS
        ready = sum(time <= now + _NOTHING for time in replicas)
        queue.join(now, arrivals * _STEP_SECONDS)
        slots = ready * load.parallel
        served = queue.leave(slots * _STEP_SECONDS / load.service_seconds)
        concurrency += (served * load.service_seconds / _STEP_SECONDS + queue.size) / _STEPS
        longest = max(longest, queue.age(now))
        outcome.queue_seconds += queue.size * _STEP_SECONDS
    outcome.replica_seconds += len(replicas)
    outcome.longest_queue_seconds = max(outcome.longest_queue_seconds, longest)
    return Observation(second + 1.0, concurrency, longest, ready)


class _Queue:
    """Requests that wait, in the order in which they came."""

    def __init__(self) -> None:
        self.size = 0.0
        self._waiting: deque[list[float]] = deque()

    def join(self, now: float, count: float) -> None:
        if count:
            self._waiting.append([now, count])
            self.size += count

    def leave(self, most: float) -> float:
        """Takes up to so many from the front; returns how many there were."""
        left = most
        while self._waiting and left > 0:
            taken = min(self._waiting[0][1], left)
            self._waiting[0][1] -= taken
            left -= taken
            if self._waiting[0][1] <= _NOTHING:
                self._waiting.popleft()
        # Fractions add up to a little more or less than nothing.
        self.size = self.size - (most - left) if self._waiting else 0.0
        return most - left

    def age(self, now: float) -> float:
        """How long the first one has waited."""
        return now - self._waiting[0][0] if self._waiting else 0.0
