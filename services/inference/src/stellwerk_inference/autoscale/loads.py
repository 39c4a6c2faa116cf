"""What all gateways report, put together second by second; bounded, and forgotten when the process ends.

Gateways report counts from their start, so a report that is lost is in the next one.
"""

import time
from array import array
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from stellwerk_protos.inference.v1 import loads_pb2 as pb

# Of OpenTelemetry's `http.server.request.duration`, as the gateways count; one more bucket takes the rest.
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
HISTORY_SECONDS = 3_600
# A gateway that is silent for so long has no requests any more.
_SILENT_SECONDS = 3.0
_FORGOTTEN_SECONDS = 60.0
_WINDOW_SECONDS = 10
_MAX_GATEWAYS, _MAX_LOADS, _MAX_HISTORIES, _MAX_USAGES = 200, 5_000, 500, 100
_MAX_PROCESS_CHARACTERS, _MAX_BATCHES = 200, 32
_COUNTS = ("arrived", "answered", "failed", "refused")


@dataclass
class Second:
    """What came in one second, over all gateways."""

    arrived: int = 0
    answered: int = 0
    failed: int = 0
    refused: int = 0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    in_flight: float = 0.0
    queued: float = 0.0
    queue_seconds: float = 0.0
    cpu_seconds: float = 0.0
    calls: int = 0
    called_requests: int = 0
    # Calls by the most requests that are counted together.
    batches: Counter[int] = field(default_factory=Counter)


@dataclass
class _Gateway:
    heard_seconds: float = 0.0
    # What it said last, and what of that is counted already.
    said: dict[str, pb.GatewayLoad] = field(default_factory=dict)
    counted: dict[str, pb.GatewayLoad] = field(default_factory=dict)


@dataclass
class _History:
    """One load as far back as it is kept."""

    arrivals: "array[int]" = field(default_factory=lambda: array("I"))
    # Seconds of work on each request, where any was answered; else -1.
    service: "array[float]" = field(default_factory=lambda: array("f"))
    recent: deque[Second] = field(default_factory=lambda: deque(maxlen=_WINDOW_SECONDS))
    # When, how many, and the milliseconds that they took, of the last hour.
    cold_starts: deque[tuple[float, int, int]] = field(default_factory=lambda: deque(maxlen=HISTORY_SECONDS))
    end_seconds: float = 0.0

    def add(self, second: Second, now: float) -> None:
        self.arrivals.append(second.arrived)
        self.service.append(second.in_flight / second.answered if second.answered else -1.0)
        self.recent.append(second)
        self.end_seconds = now
        if len(self.arrivals) > 2 * HISTORY_SECONDS:
            del self.arrivals[:-HISTORY_SECONDS], self.service[:-HISTORY_SECONDS]


class Loads:
    """The loads as this process knows them."""

    def __init__(self) -> None:
        self._gateways: OrderedDict[str, _Gateway] = OrderedDict()
        self._histories: OrderedDict[str, _History] = OrderedDict()
        # By deployment and replica, as at the last tick.
        self._usages: dict[str, dict[str, pb.ReplicaUsage]] = {}

    def report(self, report: pb.ReportLoadRequest, now: float | None = None) -> None:
        """Takes in what one gateway says."""
        process = report.process[:_MAX_PROCESS_CHARACTERS]
        gateway = self._gateways.get(process)
        if gateway is None:
            gateway = self._gateways[process] = _Gateway()
        self._gateways.move_to_end(process)
        gateway.heard_seconds = time.monotonic() if now is None else now
        for load in report.loads[:_MAX_LOADS]:
            gateway.said[load.deployment] = load
            # Heard of for the first time, its counts may be old: they are not of this second.
            gateway.counted.setdefault(load.deployment, load)
        while len(self._gateways) > _MAX_GATEWAYS:
            self._gateways.popitem(last=False)

    def tick(self, now: float | None = None) -> None:
        """Ends a second."""
        now = time.monotonic() if now is None else now
        seconds: dict[str, Second] = defaultdict(Second)
        for process, gateway in list(self._gateways.items()):
            if now - gateway.heard_seconds > _FORGOTTEN_SECONDS:
                del self._gateways[process]
            else:
                self._count_cold_starts(gateway, now)
                _take(gateway, seconds, is_silent=now - gateway.heard_seconds > _SILENT_SECONDS)
        usages = self._said_usages(now)
        for name, replicas in usages.items():
            _use(seconds[name], self._usages.get(name, {}), replicas)
        self._usages = usages
        self._keep(seconds, now)

    def _said_usages(self, now: float) -> dict[str, dict[str, pb.ReplicaUsage]]:
        """What the replicas use, as the gateway says that asked them last."""
        usages: dict[str, dict[str, pb.ReplicaUsage]] = {}
        for gateway in self._gateways.values():
            if now - gateway.heard_seconds > _SILENT_SECONDS:
                continue
            for name, load in gateway.said.items():
                for usage in load.usages[:_MAX_USAGES]:
                    known = usages.setdefault(name, {}).setdefault(usage.replica, usage)
                    if usage.cpu_seconds > known.cpu_seconds:
                        usages[name][usage.replica] = usage
        return usages

    def _count_cold_starts(self, gateway: _Gateway, now: float) -> None:
        for name, said in gateway.said.items():
            before = gateway.counted[name]
            more = said.cold_starts - before.cold_starts
            if more > 0 and (history := self._histories.get(name)) is not None:
                history.cold_starts.append((now, more, max(said.cold_start_ms - before.cold_start_ms, 0)))

    def _keep(self, seconds: dict[str, Second], now: float) -> None:
        for name in seconds.keys() - self._histories.keys():
            self._histories[name] = _History()
        for name, history in self._histories.items():
            history.add(seconds.get(name) or Second(), now)
        for name, second in seconds.items():
            if second.arrived:
                self._histories.move_to_end(name)
        while len(self._histories) > _MAX_HISTORIES:
            self._histories.popitem(last=False)

    def memory_bytes(self, deployment: str) -> int:
        """What the replicas of a deployment have, together."""
        return sum(usage.memory_bytes for usage in self._usages.get(deployment, {}).values())

    def cold_starts(self, deployment: str, now: float | None = None) -> tuple[int, float]:
        """How often requests waited for a first replica within the last hour, and the mean wait in ms."""
        history = self._histories.get(deployment)
        since = (time.monotonic() if now is None else now) - HISTORY_SECONDS
        found = [item for item in history.cold_starts if item[0] >= since] if history is not None else []
        count = sum(number for _, number, _ in found)
        return count, sum(ms for _, _, ms in found) / count if count else 0.0

    def gateways(self, now: float | None = None) -> int:
        """How many report."""
        now = time.monotonic() if now is None else now
        return sum(now - item.heard_seconds <= _SILENT_SECONDS for item in self._gateways.values())

    def waiting(self, deployment: str, now: float | None = None) -> float:
        """Requests that wait for a deployment, as was said last."""
        now = time.monotonic() if now is None else now
        return sum(
            gateway.said[deployment].queued
            for gateway in self._gateways.values()
            if deployment in gateway.said and now - gateway.heard_seconds <= _SILENT_SECONDS
        )

    def last(self, deployment: str) -> Second:
        """The second that has ended."""
        history = self._histories.get(deployment)
        return history.recent[-1] if history is not None and history.recent else Second()

    def recent(self, deployment: str) -> Sequence[Second]:
        """The last ten seconds."""
        history = self._histories.get(deployment)
        return list(history.recent) if history is not None else []

    def history(self, deployment: str, seconds: int) -> tuple[list[int], float]:
        """Arrivals second by second, oldest first, and the seconds that one request takes (0: not known)."""
        history = self._histories.get(deployment)
        if history is None:
            return [], 0.0
        # Where requests waited within a replica they took longer: the lower quarter is nearer to the work.
        known = sorted(item for item in history.service[-seconds:] if item >= 0)
        return list(history.arrivals[-seconds:]), known[len(known) // 4] if known else 0.0


def _take(gateway: _Gateway, seconds: dict[str, Second], *, is_silent: bool) -> None:
    """Adds what a gateway has counted since it was looked at last."""
    for name, said in gateway.said.items():
        before = gateway.counted[name]
        if said.answered < before.answered:
            before = pb.GatewayLoad()  # another deployment of that name
        second = seconds[name]
        for count in _COUNTS:
            more = max(getattr(said, count) - getattr(before, count), 0)
            setattr(second, count, getattr(second, count) + more)
        for index, (new, old) in enumerate(zip(said.buckets, before.buckets or [0] * 17, strict=False)):
            if index < len(second.buckets):
                second.buckets[index] += max(new - old, 0)
        if not is_silent:
            second.in_flight += said.in_flight
            second.queued += said.queued
            second.queue_seconds = max(second.queue_seconds, said.queue_ms / 1000)
        gateway.counted[name] = said


def _use(
    second: Second, before: Mapping[str, pb.ReplicaUsage], usages: Mapping[str, pb.ReplicaUsage]
) -> None:
    """Adds what replicas have used since they were looked at last; one that is new has used nothing yet."""
    for replica, usage in usages.items():
        known = before.get(replica, usage)
        second.cpu_seconds += max(usage.cpu_seconds - known.cpu_seconds, 0.0)
        second.calls += max(usage.calls - known.calls, 0)
        second.called_requests += max(usage.requests - known.requests, 0)
        for most, count in list(usage.batches.items())[:_MAX_BATCHES]:
            second.batches[most] += max(count - known.batches.get(most, 0), 0)


def batch_quantile(batches: Mapping[int, int], share: float) -> int:
    """How many requests at most `share` of the calls had; 0 without calls."""
    left = share * sum(batches.values())
    for most in sorted(batches):
        left -= batches[most]
        if batches[most] and left <= 0:
            return most
    return 0


def quantile_ms(buckets: Iterable[int], share: float) -> float:
    """The duration within which `share` of the answers came, in ms; evenly spread within a bucket."""
    counts = list(buckets)
    rank = share * sum(counts)
    if not rank:
        return 0.0
    total, low = 0.0, 0.0
    for bound, count in zip((*BOUNDS, BOUNDS[-1]), counts, strict=False):
        if count and total + count >= rank:
            return 1000 * (low + (bound - low) * (rank - total) / count)
        total, low = total + count, bound
    return 1000 * BOUNDS[-1]
