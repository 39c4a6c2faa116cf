"""How a worker is started.

Imports next to nothing: the first worker starts before the rest of the scorer is imported, for both
take about as long, and the one who waits for a replica waits for both.
"""

import json
import mmap
import os
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from stellwerk_scorer.config import Settings
from stellwerk_scorer.worker import frames

# What the front has and user code must not get: secrets, where they lie, and a setting of ours.
_HIDDEN_VARIABLES = (
    *("STELLWERK_OTLP_KEY", "STELLWERK_SCORER_CERTIFICATE", "STELLWERK_SCORER_KEY"),
    "GRPC_ENABLE_FORK_SUPPORT",
)


@dataclass(frozen=True, slots=True)
class Started:
    """A worker that runs: its process, the front's end of its socket, and the memory that both share."""

    process: subprocess.Popen[bytes]
    socket: socket.socket
    claims: memoryview


@dataclass(frozen=True, slots=True)
class Launch:
    """How a worker is started; without a script it serves the model's folder."""

    python: str
    script: str
    init_timeout_seconds: int = 300
    memory_bytes: int = 0
    # Where a debugger is waited for before the script is loaded; 0: none is.
    debug_port: int = 0
    # Where mini-batches lie, of a batch deployment.
    batch_folder: str = ""

    @classmethod
    def of(cls, settings: Settings) -> "Launch":
        """What the settings of a scorer say of its workers."""
        return cls(
            python=settings.scorer_python,
            script=settings.scorer_script,
            init_timeout_seconds=settings.scorer_init_timeout_seconds,
            memory_bytes=settings.scorer_memory_bytes,
            debug_port=settings.scorer_debug_port,
            batch_folder=settings.scorer_batch_folder,
        )

    def start(self) -> Started:
        """Starts a worker, which then loads the script; raises `OSError` if there is no such interpreter."""
        own, its = socket.socketpair()
        own.setblocking(False)
        memory = os.memfd_create("claims")
        with its:
            try:
                os.truncate(memory, frames.CLAIMS.size)
                claims = memoryview(mmap.mmap(memory, frames.CLAIMS.size)).cast("Q")
                process = subprocess.Popen(
                    [
                        *(self.python, str(Path(frames.__file__).with_name("__main__.py"))),
                        *(str(its.fileno()), str(memory), self._told()),
                    ],
                    stdin=subprocess.DEVNULL,
                    pass_fds=(its.fileno(), memory),
                    env=self._environment(),
                )
            except OSError:
                own.close()
                raise
            finally:
                os.close(memory)
        return Started(process, own, claims)

    def _told(self) -> str:
        names = ("script", "init_timeout_seconds", "memory_bytes", "debug_port", "batch_folder")
        return json.dumps({name: getattr(self, name) for name in names})

    def _environment(self) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if name not in _HIDDEN_VARIABLES}
        script = {"AZUREML_ENTRY_SCRIPT": self.script} if self.script else {}
        return {**script, **own, "PYTHONUNBUFFERED": "1", "STELLWERK_SCORER_SCRIPT": self.script}
