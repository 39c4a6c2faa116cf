"""What a training script uses inside a run. Standard library only."""

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from stellwerk.errors import StellwerkError
from stellwerk.recorder import Recorder

if TYPE_CHECKING:
    from stellwerk.interactive import InteractiveRun

_lock = threading.Lock()
_current: "RunContext | None" = None


class RunContext(Recorder):
    """The run that this process belongs to."""

    def __init__(self, name: str, metrics_dir: Path) -> None:
        super().__init__(metrics_dir)
        self._name = name

    @property
    def name(self) -> str:
        """Full name: `workspaces/demo/runs/amber-fox-1`."""
        return self._name

    @property
    def id(self) -> str:
        """The last segment of the name."""
        return self.name.rsplit("/", 1)[-1]

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

    def secret(self, name: str) -> str:
        """The value of a secret of the workspace, as text; the run's configuration must name it.

        Raises `StellwerkError`. What the run prints of it becomes `***` in the log.
        """
        from stellwerk.run_secret import read

        return read(self.name, name).decode()

    def child(self, name: str = "", *, display_name: str = "") -> "InteractiveRun":
        """A run below this one, for a `with` block: one fold, one trial, one worker. Children have children.

        `name` is the child's among those of this run: a second run of the script has children of its own
        with the same names. A script that was killed and is started again within its run goes on with the
        child that it left open; where there was an end, the name gets one more child.
        What it logs survives the death of the script; the agent then delivers it and ends the child.
        Needs the network and the package `stellwerk` in the environment (`ImportError` otherwise).
        """
        try:
            from stellwerk.interactive import InteractiveRun
        except ModuleNotFoundError as error:
            if error.name is None or error.name.startswith("stellwerk."):
                raise
            raise ImportError(
                f"A child run needs the package {error.name!r}, which this environment lacks. "
                "Add 'stellwerk' to the packages of the environment, or log to the run itself."
            ) from error
        return InteractiveRun.below(self.name, name=name, display_name=display_name)


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
