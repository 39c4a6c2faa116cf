"""The log files of a run: found as they appear, followed through rotation, shipped byte for byte.

A log is what one file held from its creation on. A file that was renamed stays the same log; one that
was truncated, or a new one under an old name, starts a log of its own, `train.log.2` after `train.log`.
Positions lie outside the user's folders, so that nothing foreign appears beside the script's files.
"""

import hashlib
import json
import logging
import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from stellwerk.shipping import LOG_CHUNK_BYTES, Batch, Position
from stellwerk_agent.files import portable, write_atomic
from stellwerk_agent.redaction import Redactor
from stellwerk_protos.runs.v1 import ingest_pb2

_SCAN_SECONDS = 0.5
# A scan of very many files must not become the agent's main work.
_SCAN_SHARE = 20
# Up to so many files are looked at in every round, more only when the folders are scanned.
_QUICK_FILES = 64
_HEAD_BYTES = 1024
# `runs` takes 1,000 logs of a run; some room is left for the platform's own.
_MOST_LOGS = 900
_NOTICES = "system_logs/notices.log"
_GONE = (-1, -1)
log = logging.getLogger(__name__)
_Inode: TypeAlias = tuple[int, int]


class Redaction:
    """What is hidden in all logs of a run, and whether nothing more is written to them."""

    def __init__(self, redactor: Redactor) -> None:
        self.redactor = redactor
        self.is_end = False


class LogFile:
    """Follows one file under the name `log`."""

    def __init__(
        self, path: Path, log: str, inode: _Inode, position_path: Path, redaction: Redaction
    ) -> None:
        self._redaction = redaction
        self.path = path
        self.log = log
        self.inode = inode
        self.size_bytes = 0
        self.head = b""
        self._peeked_head = b""
        self._position_path = position_path
        self._acknowledged = self._read = self._saved = self._load()

    def _load(self) -> int:
        try:
            return int(self._position_path.read_text())
        except (FileNotFoundError, ValueError):
            return 0

    @property
    def read_bytes(self) -> int:
        """How far it was handed out."""
        return self._read

    def look(self) -> None:
        """Learns the file's size."""
        if self.inode == _GONE:
            return
        try:
            self.size_bytes = os.stat(self.path).st_size
        except OSError:
            return  # it was removed or renamed: the next scan tells

    def end(self) -> None:
        """The file was cut: nothing more of this log can be read."""
        if self._acknowledged < self._read:
            log.warning(
                "%s was cut before %d bytes of it were stored", self.log, self._read - self._acknowledged
            )
        self.inode = _GONE
        self.size_bytes = 0

    def has_more(self) -> bool:
        """Whether there was more when it was last looked at."""
        return self.size_bytes > self._read

    def peek(self) -> Batch[ingest_pb2.LogChunk] | None:
        """What follows what was handed out last, None when there is nothing. Changes nothing."""
        try:
            with open(self.path, "rb") as file:
                status = os.fstat(file.fileno())
                # Another file may have taken the name, or this one was cut: the next scan tells.
                if (status.st_dev, status.st_ino) != self.inode or status.st_size <= self._read:
                    return None
                file.seek(self._read)
                data = file.read(LOG_CHUNK_BYTES)
        except FileNotFoundError:
            return None
        if self._read == 0:
            self._peeked_head = data[:_HEAD_BYTES]
        # The last piece of a file that nobody writes to any more; others may begin a secret.
        is_end = self._redaction.is_end and self._read + len(data) >= status.st_size
        data = self._redaction.redactor.release(data, is_end=is_end)
        if not data:
            return None
        chunk = ingest_pb2.LogChunk(
            log=self.log, offset=self._read, data=data, time=time.time_ns() // 1_000_000
        )
        return Batch(chunk, Position(self._read + len(data)))

    def advance(self, batch: Batch[ingest_pb2.LogChunk]) -> None:
        """Hands out what `peek` gave."""
        if batch.payload.offset == 0:
            self.head = self._peeked_head
        self._read = batch.end.offset

    def rewind(self) -> None:
        """Hands out again what was not acknowledged: the connection broke."""
        self._read = self._acknowledged

    def acknowledge(self, end: Position) -> None:
        """The service has stored everything before `end`."""
        self._acknowledged = end.offset

    def save(self) -> None:
        """Stores the acknowledged position; a crash leaves the old or the new one."""
        if self._acknowledged == self._saved:
            return
        temporary = self._position_path.with_name(self._position_path.name + ".new")
        temporary.write_text(str(self._acknowledged))
        os.replace(temporary, self._position_path)
        self._saved = self._acknowledged

    def starts_like(self, path: Path) -> bool:
        """Whether the file at `path` begins as this one did: inode numbers are given away anew."""
        try:
            with open(path, "rb") as file:
                return file.read(len(self.head)) == self.head
        except OSError:
            return False


class LogFolder:
    """All log files of one run; `state` is a folder for positions and for the list of logs.

    `own` holds the platform's folders (`user_logs`, `system_logs`), `work` is the command's working folder:
    `logs/**` and `user_logs/*.txt` there are logs as well.
    """

    def __init__(self, own: Path, work: Path, state: Path, redactor: Redactor | None = None) -> None:
        self._redaction = Redaction(redactor or Redactor())
        self._own = own
        self._work = work
        self._state = state
        self._files: dict[str, LogFile] = {}
        self._by_inode: dict[_Inode, LogFile] = {}
        self._next_scan_time = 0.0
        # A reader that was given up may still be scanning in its thread.
        self._lock = threading.Lock()
        state.mkdir(exist_ok=True)
        self._load()

    def _load(self) -> None:
        try:
            stored = json.loads((self._state / "logs.json").read_bytes())
        except (FileNotFoundError, ValueError):
            return
        for entry in stored:
            self._hold(
                LogFile(
                    Path(entry["path"]),
                    entry["log"],
                    tuple(entry["inode"]),
                    self._at(entry["log"]),
                    self._redaction,
                )
            )

    def _at(self, log: str) -> Path:
        return self._state / hashlib.sha256(log.encode()).hexdigest()[:32]

    def _hold(self, file: LogFile) -> None:
        self._files[file.log] = file
        self._by_inode[file.inode] = file

    def finish(self) -> None:
        """Nothing more is written: what could have been the beginning of a secret is handed out too."""
        self._redaction.is_end = True

    def tails(self) -> list[LogFile]:
        """Every log."""
        return list(self._files.values())

    def due(self, *, now: bool = False) -> list[LogFile]:
        """The logs that have more; `now` looks for new files although that was done lately. Blocks."""
        with self._lock:
            self._look(now)
            return [file for file in self._files.values() if file.has_more()]

    def _look(self, now: bool) -> None:
        if now or time.monotonic() >= self._next_scan_time:
            began = time.monotonic()
            self._scan()
            spent = time.monotonic() - began
            self._next_scan_time = began + max(_SCAN_SECONDS, _SCAN_SHARE * spent)
        elif len(self._files) <= _QUICK_FILES:
            for file in self._files.values():
                file.look()

    def _scan(self) -> None:
        known = len(self._files)
        for path, log in self._found():
            try:
                status = os.lstat(path)
            except OSError:
                continue
            if stat.S_ISREG(status.st_mode):
                self._see(path, log, status)
        if len(self._files) > known:
            entries = [
                {"log": file.log, "path": str(file.path), "inode": file.inode}
                for file in self._files.values()
            ]
            write_atomic(self._state / "logs.json", json.dumps(entries).encode())

    def _found(self) -> Iterator[tuple[Path, str]]:
        for folder in ("system_logs", "user_logs"):
            for path in sorted((self._own / folder).glob("*")):
                yield path, f"{folder}/{portable(path.name)}"
        for path in sorted((self._work / "user_logs").glob("*.txt")):
            yield path, f"user_logs/{portable(path.name)}"
        for folder_path, folders, names in os.walk(self._work / "logs"):
            folders.sort()
            for name in sorted(names):
                path = Path(folder_path, name)
                yield path, portable(str(path.relative_to(self._work)))

    def _see(self, path: Path, log: str, status: os.stat_result) -> None:
        inode = (status.st_dev, status.st_ino)
        file = self._by_inode.get(inode)
        if file is not None and file.path != path:
            if _inode(file.path) == inode:
                return  # a second name of the same file
            if not file.starts_like(path):
                file = None
        if file is not None and status.st_size < file.read_bytes:
            file.end()
            file = None
        if file is None and len(self._files) >= _MOST_LOGS and path.is_relative_to(self._work):
            self._leave_out(log)
            return
        if file is None:
            free = self._free(log)
            file = LogFile(path, free, inode, self._at(free), self._redaction)
            self._hold(file)
        file.path = path
        file.size_bytes = status.st_size

    def _leave_out(self, first: str) -> None:
        """Says once, where the run's owner looks, that there are too many."""
        notices = self._own / _NOTICES
        if not notices.exists():
            notices.parent.mkdir(exist_ok=True)
            notices.write_text(
                f"More than {_MOST_LOGS} log files: {first!r} and those after it are not followed. "
                "Write fewer to ./logs, or write them to ./outputs, which has no limit.\n"
            )

    def _free(self, log: str) -> str:
        if log not in self._files:
            return log
        return next(name for n in range(2, 1 << 62) if (name := f"{log}.{n}") not in self._files)


def _inode(path: Path) -> _Inode:
    try:
        status = os.lstat(path)
    except OSError:
        return _GONE
    return status.st_dev, status.st_ino
