"""What a run leaves in `./outputs`: uploaded while it goes on, and made exact at its end.

A file that the script removes again stays with the run as it last was uploaded.
"""

import asyncio
import hashlib
import logging
import os
import stat
import time
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stellwerk_agent.blobs import Blobs, Uploaded
from stellwerk_agent.calls import call
from stellwerk_agent.failure import StepFailed
from stellwerk_agent.files import portable
from stellwerk_platform import names
from stellwerk_platform.errors import PlatformError
from stellwerk_protos.common.v1 import common_pb2
from stellwerk_protos.runs.v1 import artifacts_pb2, artifacts_pb2_grpc

log = logging.getLogger(__name__)
FOLDER = "outputs"
_BATCH = 1_000
_SETTLED_SECONDS = 2.0
_SCAN_SECONDS = 2.0
# A scan of very many files must not become the agent's main work.
_SCAN_SHARE = 20
_FINAL_ROUNDS = 5


@dataclass(frozen=True)
class Signature:
    """What tells without reading that a file is still the same."""

    size_bytes: int
    modified_ns: int
    changed_ns: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> "Signature":
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)

    def is_settled(self) -> bool:
        """Whether nothing was written for a while."""
        return time.time_ns() - max(self.modified_ns, self.changed_ns) > _SETTLED_SECONDS * 1e9


@dataclass(frozen=True)
class Found:
    """A file below the outputs; `name` is its path as the platform stores it."""

    path: Path
    name: str
    signature: Signature

    def is_same(self) -> bool:
        """Whether the file is still what was found."""
        try:
            return Signature.of(os.stat(self.path)) == self.signature
        except OSError:
            return False


class Outputs:
    """The outputs of one run."""

    def __init__(
        self, work: Path, run: str, blobs: Blobs, artifacts: "artifacts_pb2_grpc.ArtifactServiceAsyncStub"
    ) -> None:
        self._work = work
        self._run = run
        self._blobs = blobs
        self._artifacts = artifacts
        self._recorded: dict[str, Signature] = {}
        self._sent = 0
        self._finishing = asyncio.Event()

    async def watch(self) -> None:
        """Uploads what has not changed for 2 s, until `finish`; an error is tried again later."""
        pause = _SCAN_SECONDS
        while not await self._finishes_within(pause):
            began = time.monotonic()
            try:
                files = await asyncio.to_thread(scan, self._work)
                pause = max(_SCAN_SECONDS, _SCAN_SHARE * (time.monotonic() - began))
                settled = [file for file in self._new(files) if file.signature.is_settled()]
                await self._send(settled, watched=True)
            except (StepFailed, PlatformError, OSError) as error:
                log.warning("%s: outputs wait: %s", self._run, error)

    async def _finishes_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._finishing.wait()
        except TimeoutError:
            pass
        return self._finishing.is_set()

    def finish(self) -> None:
        """`watch` returns once what it is sending is recorded: an older file must not come after a newer."""
        self._finishing.set()

    async def collect(self) -> str:
        """Makes what is recorded exactly what is there, and says what there was."""
        for _ in range(_FINAL_ROUNDS):
            files = await asyncio.to_thread(scan, self._work)
            new = self._new(files)
            if not new:
                return f"{len(files)} files, {self._sent} new"
            try:
                await self._send(new)
            except PlatformError as error:
                raise StepFailed(
                    "OUTPUT_COLLECTION_FAILED",
                    f"The outputs are refused: {error.reason}: {error.message}",
                    error.cure or "See the agent's log.",
                ) from error
        raise StepFailed(
            "OUTPUT_COLLECTION_FAILED",
            f"{new[0].name!r} could not be read as a whole, one of {len(new)} such files.",
            "Check that it is readable and that no process still writes to it.",
        )

    async def _unless_finishing(self, work: Coroutine[Any, Any, Uploaded]) -> Uploaded | None:
        """A store that hangs must not hold up the end of the run; what was sent is not sent again."""
        task, finishing = asyncio.create_task(work), asyncio.create_task(self._finishing.wait())
        try:
            await asyncio.wait((task, finishing), return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            for pending in (task, finishing):
                pending.cancel()
            await asyncio.gather(task, finishing, return_exceptions=True)

    def missing(self) -> list[str]:
        """The names of files that are there and not recorded as they are."""
        return [file.name for file in self._new(scan(self._work))]

    def _new(self, files: Sequence[Found]) -> list[Found]:
        return [file for file in files if self._recorded.get(file.name) != file.signature]

    async def _send(self, files: Sequence[Found], *, watched: bool = False) -> None:
        """Uploads and records files; those that change meanwhile are left for the next time.

        While the run is `watched` the store need not be waited for: the end tries again.
        """
        for start in range(0, len(files), _BATCH):
            batch = await asyncio.to_thread(_describe, files[start : start + _BATCH])
            by_path = {found.path: found for found, _ in batch}
            work = self._blobs.upload(
                names.workspace_of(self._run),
                {file.sha256: found.path for found, file in batch},
                lambda path, known=by_path: known[path].is_same(),  # type: ignore[misc]
                patience_seconds=0 if watched else None,
            )
            uploaded = await (self._unless_finishing(work) if watched else work)
            if uploaded is None:
                return
            self._sent += uploaded.sent
            whole = [(found, file) for found, file in batch if file.sha256 not in uploaded.changed]
            if whole:
                request = artifacts_pb2.CreateArtifactsRequest(
                    parent=self._run, files=[file for _, file in whole]
                )
                await call(self._artifacts.CreateArtifacts, request)
            self._recorded.update({found.name: found.signature for found, _ in whole})


def scan(work: Path) -> list[Found]:
    """The regular files, by path. Links are followed while they stay below the working folder."""
    return sorted(_walk(work, work.resolve()), key=lambda found: found.name)


def _walk(work: Path, root: Path) -> Iterator[Found]:
    if (work / FOLDER).is_symlink():
        return
    for folder, _, file_names in os.walk(work / FOLDER):
        for name in file_names:
            path = Path(folder, name)
            try:
                status = os.lstat(path)
                if stat.S_ISLNK(status.st_mode) and path.resolve().is_relative_to(root):
                    status = os.stat(path)
            except (OSError, RuntimeError):
                continue  # gone already, or a link to nothing or to itself
            if stat.S_ISREG(status.st_mode):
                relative = os.path.relpath(path, work)
                yield Found(path, portable(relative), Signature.of(status))


def _describe(batch: Sequence[Found]) -> list[tuple[Found, common_pb2.File]]:
    """The files with their digests; those that changed or cannot be read are left out."""
    described = []
    for found in batch:
        try:
            with open(found.path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                status = os.fstat(file.fileno())
        except OSError as error:
            log.warning("%s cannot be read: %s", found.name, error)
            continue
        if Signature.of(status) == found.signature:
            executable = bool(status.st_mode & 0o100)
            described.append(
                (
                    found,
                    common_pb2.File(
                        path=found.name, sha256=digest, size_bytes=status.st_size, executable=executable
                    ),
                )
            )
    return described
