"""One request on its way to a worker, and what comes back."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import NamedTuple

from stellwerk_platform.errors import PlatformError


class Answer(NamedTuple):
    """A frame of the worker: its kind, metadata and payload, and the microseconds that `run` took."""

    kind: int
    meta: bytes
    payload: bytes
    took: int


@dataclass(slots=True, eq=False)
class Job:
    """A request. `done` is called once, with the answer or the error, unless `is_canceled`."""

    kind: int
    meta: bytes
    payload: bytes
    # Of the loop's clock: when its client no longer waits.
    deadline: float
    done: Callable[[Answer | PlatformError], None]
    # Requests with equal keys may go into one batch; None goes alone.
    batch_key: Hashable = None
    is_canceled: bool = False
    # Seconds from when a worker has it, in place of the rest of `deadline`; 0: the deadline is that of both.
    run_seconds: float = 0.0

    def finish(self, outcome: Answer | PlatformError) -> None:
        """Tells the outcome, once, if somebody still waits for it."""
        if not self.is_canceled:
            self.is_canceled = True
            self.done(outcome)
