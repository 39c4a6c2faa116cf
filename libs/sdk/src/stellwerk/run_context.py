"""What a training script uses inside a run. Standard library only.

Logging appends to a local write-ahead file and returns; the agent ships it. So a call neither waits for
the platform nor fails because of it: an error of the disk is reported once and the training goes on.
"""

import math
import operator
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import SupportsFloat, SupportsIndex

from stellwerk import wal
from stellwerk.errors import StellwerkError

LONGEST_NAME = 500
_LARGEST_STEP = 2**63 - 1
_lock = threading.Lock()
_current: "RunContext | None" = None


class RunContext:
    """The run that this process belongs to."""

    def __init__(self, name: str, metrics_dir: Path) -> None:
        self.name = name
        """Full name: `workspaces/demo/runs/amber-fox-1`."""
        self._metrics_dir = metrics_dir
        self._lock = threading.Lock()
        self._steps: dict[str, int] = {}
        self._writer: wal.Writer | None = None
        self._writer_pid = 0
        self._warned = False

    @property
    def id(self) -> str:
        """The last segment of the name."""
        return self.name.rsplit("/", 1)[-1]

    @property
    def outputs(self) -> Path:
        """The folder whose files are kept with the run."""
        path = Path("outputs")
        path.mkdir(exist_ok=True)
        return path

    def input(self, name: str) -> Path:
        """The folder of an input; raises `StellwerkError` if the run has none of that name."""
        prefix = "STELLWERK_INPUT_"
        path = os.environ.get(prefix + name.upper().replace("-", "_").replace(".", "_"))
        if path is None:
            there = sorted(key.removeprefix(prefix).lower() for key in os.environ if key.startswith(prefix))
            raise StellwerkError(
                "INPUT_NOT_FOUND",
                f"The run has no input {name!r}; it has: {', '.join(there) or 'none'}.",
                f"Submit it with --input {name}=DATASET:VERSION.",
                code="NOT_FOUND",
            )
        return Path(path)

    def log(self, metric: str, value: SupportsFloat, *, step: SupportsIndex | None = None) -> None:
        """Logs one value. Without `step` the metric counts by itself, from 0.

        NaN and infinities are kept. Raises `ValueError` or `TypeError` for what is no metric.
        """
        self.log_metrics({metric: value}, step=step)

    def log_metrics(self, metrics: Mapping[str, SupportsFloat], *, step: SupportsIndex | None = None) -> None:
        """Logs several values with the same time and, if given, the same step."""
        checked = [(_name(name), _number(name, value)) for name, value in metrics.items()]
        given = None if step is None else _step(step)
        if not checked:
            return
        with self._lock:
            points = []
            for name, number in checked:
                at = self._steps.get(name, -1) + 1 if given is None else given
                self._steps[name] = max(at, self._steps.get(name, -1))
                points.append((name, at, number))
            self._write(points)

    def _write(self, points: list[tuple[str, int, float]]) -> None:
        try:
            # A forked child needs a file of its own.
            if self._writer is None or self._writer_pid != os.getpid():
                self._writer = wal.Writer(self._metrics_dir)
                self._writer_pid = os.getpid()
            self._writer.append(time.time_ns() // 1_000_000, points)
        except OSError as error:
            if not self._warned:
                self._warned = True
                print(f"stellwerk: metrics cannot be written: {error}; the run goes on", file=sys.stderr)


def current_run() -> RunContext:
    """The run of this process; raises `StellwerkError` outside of a run."""
    global _current
    name = os.environ.get("STELLWERK_RUN", "")
    metrics_dir = os.environ.get("STELLWERK_METRICS_DIR", "")
    if not name or not metrics_dir:
        raise StellwerkError(
            "NOT_IN_A_RUN",
            "This process does not belong to a run.",
            "Start the script with `stellwerk run submit`.",
            code="FAILED_PRECONDITION",
        )
    with _lock:
        if _current is None or _current.name != name:
            _current = RunContext(name, Path(metrics_dir))
        return _current


def _name(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"a metric's name is text, not {type(name).__name__}")
    if not 1 <= len(name) <= LONGEST_NAME:
        raise ValueError(f"a metric's name has 1 to {LONGEST_NAME} characters; this one has {len(name)}")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the metric's name {name!r} is not valid Unicode") from None
    return name


def _number(name: str, value: object) -> float:
    if isinstance(value, str | bytes | bytearray) or not hasattr(value, "__float__"):
        if not hasattr(value, "__index__"):
            raise TypeError(f"the value of {name!r} is a number, not {type(value).__name__}")
        value = operator.index(value)
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf  # type: ignore[operator]  # only integers overflow


def _step(step: SupportsIndex) -> int:
    try:
        number = operator.index(step)
    except TypeError:
        raise TypeError(f"a step is a whole number, not {type(step).__name__}") from None
    if not -_LARGEST_STEP - 1 <= number <= _LARGEST_STEP:
        raise ValueError(f"the step {number} does not fit into 64 bits")
    return number
