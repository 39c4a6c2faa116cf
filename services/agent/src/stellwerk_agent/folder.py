"""All that is known about one allocation, on disk, so that a restarted agent goes on where it was."""

import json
import logging
import os
import secrets
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
# Noted by whoever ends the command because the node stops.
NODE_STOPPED = "node_stopped"
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
        # What a full disk did not take: known as long as this process lives.
        self._unstored_report: agents_pb2.Report | None = None
        self._unstored_reason: common_pb2.Reason | None = None

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
        """Replaces the workload's token; on a full disk the one before stays, which is good for a while."""
        self._try_to_write("token", token.encode())

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
        if self.stop_reason is None and not self._try_to_write(_CANCELLATION, reason.SerializeToString()):
            self._unstored_reason = reason

    @property
    def stop_reason(self) -> common_pb2.Reason | None:
        """Why it is to stop, None if it is not."""
        path = self.path / _CANCELLATION
        return common_pb2.Reason.FromString(path.read_bytes()) if path.exists() else self._unstored_reason

    def last_report(self) -> agents_pb2.Report:
        """Where it stands; a report without sequence before the first."""
        if not self._reports:
            return agents_pb2.Report(allocation=self.allocation.name)
        return agents_pb2.Report.FromString(self._reports[max(self._reports)].read_bytes())

    def add_report(self, report: agents_pb2.Report, *, is_last: bool = False) -> None:
        """Stores the next report under the next sequence, which it sets.

        Raises `OSError` when there is no room, except for the last one: that is what tells of a full disk,
        so it is kept in memory until it is acknowledged.
        """
        report.sequence = max(self._reports, default=0) + 1
        path = self.path / "reports" / f"{report.sequence:08d}.binpb"
        try:
            write_atomic(path, report.SerializeToString())
        except OSError as error:
            if not is_last:
                raise
            log.warning("The last report of %s stays in memory: %s", self.path, error)
            self._unstored_report = report
        self._reports[report.sequence] = path

    def unacknowledged(self) -> list[agents_pb2.Report]:
        """Reports that compute may not have, in order."""
        return [self._report(sequence) for sequence in sorted(self._reports) if sequence > self._acknowledged]

    def _report(self, sequence: int) -> agents_pb2.Report:
        unstored = self._unstored_report
        if unstored is not None and unstored.sequence == sequence:
            return unstored
        return agents_pb2.Report.FromString(self._reports[sequence].read_bytes())

    def acknowledge(self, sequence: int) -> None:
        """Compute has stored all reports up to this one; the last report stays as the state."""
        if sequence <= self._acknowledged:
            return
        self._acknowledged = sequence
        # Forgotten by a crash, they are sent and acknowledged once more.
        self._try_to_write(_ACKNOWLEDGED, str(sequence).encode())
        for old in [number for number in self._reports if number <= sequence]:
            if old != max(self._reports):
                self._reports.pop(old).unlink(missing_ok=True)

    def retire(self) -> Path:
        """Takes the folder away from whoever lists what is there; returns where it is, for `discard`."""
        return _set_aside(self.path)

    @staticmethod
    def leftovers(root: Path) -> list[Path]:
        """What an earlier agent began or did not finish to remove, for `discard`."""
        return [_set_aside(path) for path in root.iterdir() if path.name.startswith(".")]

    def _try_to_write(self, name: str, data: bytes) -> bool:
        """False on a full disk, which must not keep the agent from what else it does."""
        try:
            write_atomic(self.path / name, data)
        except OSError as error:
            log.warning("%s of %s could not be written: %s", name, self.path, error)
            return False
        return True


def _set_aside(path: Path) -> Path:
    doomed = path.with_name(f".{secrets.token_hex(8)}.gone")
    os.rename(path, doomed)
    return doomed


def discard(path: Path) -> None:
    """Removes what is not needed any more, in its own time; what cannot be removed is in nobody's way."""
    try:
        remove(path)
    except OSError as error:
        log.warning("%s stays until the next start: %s", path, error)
