"""How many replicas a load wants, and when that is acted upon: no clock, no I/O.

The number follows from the requests at a time (Little's law: rate times duration), one more
where requests wait too long for a replica. As in Kubernetes' horizontal pod autoscaler, a
change must be wanted during all of a delay: up goes the smallest number that was wanted
meanwhile, down the largest.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from google.protobuf.timestamp_pb2 import Timestamp

from stellwerk_inference.states import SUCCEEDED
from stellwerk_platform import names
from stellwerk_platform.errors import FailedPrecondition, InvalidArgument
from stellwerk_platform.journal import Fact
from stellwerk_protos.inference.v1 import endpoints_pb2 as pb

MAX_REPLICAS = 100
_TARGET_CONCURRENCY, _TARGET_QUEUE_MS = 4.0, 500
_UP_DELAY_SECONDS, _DOWN_DELAY_SECONDS = 3, 60
# Within so much of a whole number of replicas a load is that number: sums of fractions are not exact.
_EPSILON = 1e-6
# What was wanted before a silence of so long says nothing about now.
_GAP_SECONDS = 5.0
_LIMITS = {
    "min_replicas": MAX_REPLICAS,
    "max_replicas": MAX_REPLICAS,
    "target_concurrency": 10_000,
    "target_queue_ms": 600_000,
    "scale_up_delay_seconds": 3_600,
    "scale_down_delay_seconds": 3_600,
}


@dataclass(frozen=True)
class Settings:
    """`pb.ScaleSettings` with the defaults filled in."""

    min_replicas: int
    max_replicas: int
    target_concurrency: float = _TARGET_CONCURRENCY
    target_queue_seconds: float = _TARGET_QUEUE_MS / 1000
    up_delay_seconds: float = _UP_DELAY_SECONDS
    down_delay_seconds: float = _DOWN_DELAY_SECONDS

    @classmethod
    def of(cls, message: pb.ScaleSettings) -> "Settings":
        """From the message; raises `InvalidArgument`."""
        check_settings(message)
        return cls(
            message.min_replicas,
            message.max_replicas,
            message.target_concurrency or _TARGET_CONCURRENCY,
            (message.target_queue_ms or _TARGET_QUEUE_MS) / 1000,
            message.scale_up_delay_seconds or _UP_DELAY_SECONDS,
            message.scale_down_delay_seconds or _DOWN_DELAY_SECONDS,
        )

    def clamp(self, replicas: int) -> int:
        """The nearest number that may be."""
        return min(max(replicas, self.min_replicas), self.max_replicas)


def check_settings(message: pb.ScaleSettings) -> None:
    """Raises `InvalidArgument`."""
    for field, limit in _LIMITS.items():
        value = getattr(message, field)
        if not 0 <= value <= limit:
            raise InvalidArgument(
                "INVALID_SCALE_SETTINGS", f"{field} cannot be {value:,}.", f"Use 0 to {limit:,}."
            )
    if message.max_replicas < max(message.min_replicas, 1):
        raise InvalidArgument(
            "INVALID_SCALE_SETTINGS",
            f"{message.min_replicas} to {message.max_replicas} replicas cannot be.",
            "max_replicas is at least 1, and not less than min_replicas.",
        )


@dataclass(frozen=True)
class Observation:
    """One second of a load, over all gateways; `time_seconds` grows."""

    time_seconds: float
    # Requests under way and waiting, as a mean.
    concurrency: float
    # The longest that one had waited for a replica.
    queue_seconds: float
    ready_replicas: int


def wanted(settings: Settings, replicas: int, seen: Observation) -> int:
    """How many replicas this second alone would want."""
    needed = math.ceil(seen.concurrency / settings.target_concurrency - _EPSILON)
    if seen.concurrency > 0:
        needed = max(needed, 1)
    # While replicas start, waiting does not say that there are too few.
    if seen.queue_seconds > settings.target_queue_seconds and seen.ready_replicas >= replicas > 0:
        needed = max(needed, replicas + 1)
    return settings.clamp(needed)


class Scaler:
    """Remembers what was wanted of one deployment, as far back as the delays go."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._last_seconds = -math.inf
        self._since_seconds = 0.0
        self._forget()

    def decide(self, replicas: int, seen: Observation) -> int:
        """How many replicas there are to be from now on: `replicas` while nothing is to change."""
        settings, now = self.settings, seen.time_seconds
        if now - self._last_seconds > _GAP_SECONDS:
            self._forget()
            self._since_seconds = now
        self._last_seconds = now
        number = wanted(settings, replicas, seen)
        self._smallest.add(now, number)
        self._largest.add(now, number)
        if settings.clamp(replicas) != replicas:
            return settings.clamp(replicas)
        if replicas == 0 < number:
            return 1
        lasted = now - self._since_seconds + _EPSILON
        if lasted >= settings.up_delay_seconds and self._smallest.best > replicas:
            return self._smallest.best
        if lasted >= settings.down_delay_seconds and self._largest.best < replicas:
            return self._largest.best
        return replicas

    def _forget(self) -> None:
        self._smallest = _Window(self.settings.up_delay_seconds, lambda new, old: new <= old)
        self._largest = _Window(self.settings.down_delay_seconds, lambda new, old: new >= old)


class _Window:
    """The best number of the last seconds; only those are kept that may still come to be it."""

    def __init__(self, seconds: float, beats: Callable[[int, int], bool]) -> None:
        self._seconds = seconds + _EPSILON
        self._beats = beats
        self._kept: deque[tuple[float, int]] = deque()

    def add(self, now: float, number: int) -> None:
        while self._kept and self._beats(number, self._kept[-1][1]):
            self._kept.pop()
        self._kept.append((now, number))
        while self._kept[0][0] < now - self._seconds:
            self._kept.popleft()

    @property
    def best(self) -> int:
        return self._kept[0][1]


# What a decision makes of a deployment


def apply(
    deployment: pb.Deployment, before: int, after: int, seen: Observation, gateways: int, now: Timestamp
) -> Fact | None:
    """Changes how many replicas are wanted; None when the deployment is not any more as it was decided on."""
    if deployment.state != SUCCEEDED or deployment.replica_count != before or before == after:
        return None
    deployment.replica_count = after
    deployment.last_scaling.CopyFrom(
        pb.ScalingDecision(
            from_replicas=before,
            to_replicas=after,
            concurrency=seen.concurrency,
            queue_ms=round(seen.queue_seconds * 1000),
            ready_replicas=seen.ready_replicas,
            gateways=gateways,
            time=now,
        )
    )
    return Fact("scaled", _code(before, after), _evidence(deployment, seen))


def _code(before: int, after: int) -> str:
    if before == 0:
        return "REQUEST_WAITS"
    if after == 0:
        return "NO_REQUESTS"
    return "LOAD_ROSE" if after > before else "LOAD_FELL"


def _evidence(deployment: pb.Deployment, seen: Observation) -> str:
    settings, made = Settings.of(deployment.scale_settings), deployment.last_scaling
    rises = made.to_replicas > made.from_replicas
    delay = settings.up_delay_seconds if rises else settings.down_delay_seconds
    since = "" if made.from_replicas == 0 else f", for {delay:g} s"
    return (
        f"{made.from_replicas} to {made.to_replicas} replicas: {seen.concurrency:.1f} requests at a time "
        f"where a replica should have {settings.target_concurrency:g}, the longest wait {made.queue_ms} ms "
        f"of {settings.target_queue_seconds * 1000:g}, {seen.ready_replicas} replicas answering{since}."
    )


def set_settings(deployment: pb.Deployment, settings: pb.ScaleSettings | None) -> Fact | None:
    """Replaces the settings; None ends scaling. Raises `InvalidArgument` or `FailedPrecondition`."""
    if deployment.state != SUCCEEDED:
        raise FailedPrecondition(
            "DEPLOYMENT_NOT_READY",
            f"{names.id_of(deployment.name)} is not ready: {deployment.reason.message}",
            "Wait until its state is Succeeded.",
        )
    if settings is None:
        if not deployment.HasField("scale_settings"):
            return None
        deployment.ClearField("scale_settings")
        deployment.replica_count = max(deployment.replica_count, 1)
        return Fact("scale_settings_changed", "REQUESTED", f"{deployment.replica_count} replicas, always.")
    bounds = Settings.of(settings)
    if deployment.HasField("scale_settings") and deployment.scale_settings == settings:
        return None
    deployment.scale_settings.CopyFrom(settings)
    deployment.replica_count = bounds.clamp(deployment.replica_count)
    text = f"{bounds.min_replicas} to {bounds.max_replicas} replicas, by load."
    return Fact("scale_settings_changed", "REQUESTED", text)


def first_count(settings: pb.ScaleSettings, asked: int) -> int:
    """With how many replicas a new deployment starts: at least one, so that it is known to work."""
    return max(Settings.of(settings).clamp(asked), 1)
