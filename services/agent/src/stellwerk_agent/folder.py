"""All that is known about one allocation, on disk, so that a restarted agent goes on where it was."""

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from stellwerk_agent.files import remove, write_atomic
from stellwerk_platform import names
from stellwerk_protos.common.v1 import common_pb2
from stellwerk_protos.compute.v1 import agents_pb2

log = logging.getLogger(__name__)
STD_LOG = "user_logs/std_log.txt"
ENVIRONMENT_LOG = "system_logs/environment.log"
_ASSIGNMENT = "assignment.binpb"
_CANCELLATION = "cancellation.binpb"
_ACKNOWLEDGED = "acknowledged"


class AllocationFolder:
    """`allocations/<workspace>.<id>/`. Not shared between processes, except where it says so."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.assignment = agents_pb2.Assignment.FromString((path / _ASSIGNMENT).read_bytes())
        self.allocation = self.assignment.allocation
        self._reports = {int(file.stem): file for file in (path / "reports").glob("*.binpb")}
        acknowledged = path / _ACKNOWLEDGED
        self._acknowledged = int(acknowledged.read_text()) if acknowledged.exists() else 0

    @classmethod
    def create(cls, root: Path, assignment: agents_pb2.Assignment) -> "AllocationFolder":
        """A new folder, complete or not there at all. The token goes into a file of its own."""
        name = assignment.allocation.name
        path = root / f"{names.workspace_of(name)}.{names.id_of(name)}"
        temporary = root / f".{path.name}.new"
        remove(temporary)
        for folder in ("reports", "metrics", "user_logs", "system_logs", "command"):
            (temporary / folder).mkdir(parents=True)
        stored = agents_pb2.Assignment()
        stored.CopyFrom(assignment)
        stored.token = ""
        write_atomic(temporary / _ASSIGNMENT, stored.SerializeToString())
        write_atomic(temporary / "token", assignment.token.encode())
        os.rename(temporary, path)
        return cls(path)

    @classmethod
    def load_all(cls, root: Path) -> "Iterator[AllocationFolder]":
        """The folders that an earlier agent left."""
        for path in sorted(root.iterdir()):
            if path.name.startswith("."):
                remove(path)
                continue
            try:
                yield cls(path)
            except (OSError, ValueError, DecodeError) as error:
                # One damaged folder must not keep the agent from the others.
                log.error("%s is left aside: %s", path, error)

    @property
    def work(self) -> Path:
        """The command's working folder."""
        return self.path / "work"

    @property
    def inputs(self) -> Path:
        """One folder an input."""
        return self.path / "inputs"

    @property
    def metrics(self) -> Path:
        """Write-ahead files."""
        return self.path / "metrics"

    @property
    def command(self) -> Path:
        """What agent and shim tell each other."""
        return self.path / "command"

    @property
    def token(self) -> Path:
        """The workload's token."""
        return self.path / "token"

    def write_token(self, token: str) -> None:
        """Replaces the workload's token."""
        write_atomic(self.token, token.encode())

    def note(self, key: str, value: dict[str, Any]) -> None:
        """Stores something small under a name."""
        write_atomic(self.path / f"{key}.json", json.dumps(value).encode())

    def noted(self, key: str) -> dict[str, Any] | None:
        """What was stored under a name."""
        path = self.path / f"{key}.json"
        if not path.exists():
            return None
        found: dict[str, Any] = json.loads(path.read_bytes())
        return found

    def request_stop(self, reason: common_pb2.Reason) -> None:
        """Remembers that it is to stop; the first reason stays."""
        if self.stop_reason is None:
            write_atomic(self.path / _CANCELLATION, reason.SerializeToString())

    @property
    def stop_reason(self) -> common_pb2.Reason | None:
        """Why it is to stop, None if it is not."""
        path = self.path / _CANCELLATION
        return common_pb2.Reason.FromString(path.read_bytes()) if path.exists() else None

    def last_report(self) -> agents_pb2.Report:
        """Where it stands; a report without sequence before the first."""
        if not self._reports:
            return agents_pb2.Report(allocation=self.allocation.name)
        return agents_pb2.Report.FromString(self._reports[max(self._reports)].read_bytes())

    def add_report(self, report: agents_pb2.Report) -> None:
        """Stores the next report under the next sequence, which it sets."""
        report.sequence = max(self._reports, default=0) + 1
        path = self.path / "reports" / f"{report.sequence:08d}.binpb"
        write_atomic(path, report.SerializeToString())
        self._reports[report.sequence] = path

    def unacknowledged(self) -> list[agents_pb2.Report]:
        """Reports that compute may not have, in order."""
        return [
            agents_pb2.Report.FromString(self._reports[sequence].read_bytes())
            for sequence in sorted(self._reports)
            if sequence > self._acknowledged
        ]

    def acknowledge(self, sequence: int) -> None:
        """Compute has stored all reports up to this one; the last report stays as the state."""
        if sequence <= self._acknowledged:
            return
        self._acknowledged = sequence
        write_atomic(self.path / _ACKNOWLEDGED, str(sequence).encode())
        for old in [number for number in self._reports if number <= sequence]:
            if old != max(self._reports):
                self._reports.pop(old).unlink(missing_ok=True)

    def discard(self) -> None:
        """Removes the folder; in one step for whoever lists what is there."""
        doomed = self.path.with_name(f".{self.path.name}.gone")
        remove(doomed)
        os.rename(self.path, doomed)
        remove(doomed)
