"""What a replica has collected: its files go to the blob store, then into the index of its endpoint.

A file is removed once it is in the index. What a writer that was killed has left is delivered up to its
last whole line; docs/interfaces.md, "Collected data".
"""

import asyncio
import fcntl
import hashlib
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stellwerk_agent.blobs import Blobs
from stellwerk_agent.calls import call
from stellwerk_agent.failure import StepFailed
from stellwerk_platform import names
from stellwerk_platform.errors import PlatformError
from stellwerk_protos.common.v1 import common_pb2
from stellwerk_protos.compute.v1 import workloads_pb2
from stellwerk_protos.inference.v1 import collections_pb2, collections_pb2_grpc

log = logging.getLogger(__name__)
FOLDER = "collected"
_SCAN_SECONDS = 2.0
# At the end of a replica, whose place another one may wait for.
_LAST_SECONDS = 30.0
_BATCH = 1_000
_OPEN = ".open"
_NAME = re.compile(
    r"(?P<collection>[A-Za-z0-9_-]+)~(?P<hour>\d{10})~(?P<instance>[A-Za-z0-9-]+)~(?P<dropped>\d{1,18})\.jsonl"
)


@dataclass(frozen=True)
class _Finished:
    """A file that grows no more."""

    path: Path
    entry: collections_pb2.CollectedFile


class Collected:
    """The collected files of one replica, by its resource name."""

    def __init__(
        self,
        folder: Path,
        replica: str,
        blobs: Blobs,
        service: "collections_pb2_grpc.CollectionServiceAsyncStub",
    ) -> None:
        self._folder = folder / FOLDER
        self._replica = replica
        self._blobs = blobs
        self._service = service

    async def run(self) -> None:
        """Delivers until it is cancelled; what does not arrive is tried again."""
        while True:
            await self._try()
            await asyncio.sleep(_SCAN_SECONDS)

    async def finish(self) -> None:
        """Delivers what is left when nothing writes any more, or says in the log what is lost."""
        try:
            async with asyncio.timeout(_LAST_SECONDS):
                await self._try()
        except TimeoutError:
            pass
        left = sum(1 for path in _files(self._folder) if _NAME.match(path.name))
        if left:
            log.error("%s: %d files of collected data are lost with this replica", self._replica, left)

    async def _try(self) -> None:
        try:
            await self._deliver()
        except (StepFailed, PlatformError, OSError) as error:
            log.warning("%s: collected data waits: %s", self._replica, error)

    async def _deliver(self) -> None:
        files = await asyncio.to_thread(self._finished)
        for start in range(0, len(files), _BATCH):
            batch = files[start : start + _BATCH]
            by_digest = {item.entry.file.sha256: item.path for item in batch}
            await self._blobs.upload(names.workspace_of(self._replica), by_digest)
            request = collections_pb2.RecordCollectedFilesRequest(
                parent=self._replica, files=[item.entry for item in batch]
            )
            await call(self._service.RecordCollectedFiles, request)
            await asyncio.to_thread(_remove, batch)

    def _finished(self) -> list[_Finished]:
        for path in _files(self._folder):
            if path.name.endswith(_OPEN):
                _take_over(path)
        found = [(path, _NAME.fullmatch(path.name)) for path in _files(self._folder)]
        return [_Finished(path, self._entry(path, match)) for path, match in found if match is not None]

    def _entry(self, path: Path, match: re.Match[str]) -> collections_pb2.CollectedFile:
        _, _, _, endpoint, _, deployment, _, replica = self._replica.split("/")
        hour = match["hour"]
        folder = f"{endpoint}/{deployment}/{match['collection']}"
        content = path.read_bytes()
        return collections_pb2.CollectedFile(
            file=common_pb2.File(
                path=f"{folder}/{hour[:4]}/{hour[4:6]}/{hour[6:8]}/{hour[8:]}/{replica}-{match['instance']}.jsonl",
                sha256=hashlib.sha256(content).hexdigest(),
                size_bytes=len(content),
            ),
            event_count=content.count(b"\n"),
            dropped_count=int(match["dropped"]),
        )


def collection_variables(workload: workloads_pb2.Workload, folder: Path, replica: str) -> dict[str, str]:
    """What the scoring server is told; empty unless something is collected."""
    if not workload.HasField("data_collection"):
        return {}
    wanted = workload.data_collection
    prefix = "STELLWERK_SCORER_COLLECT"
    return {
        prefix: ",".join(wanted.collections),
        f"{prefix}_FOLDER": str(folder / FOLDER),
        f"{prefix}_PERCENT": str(wanted.sampling_percent or 100),
        f"{prefix}_HEADERS": ",".join(wanted.captured_headers),
        f"{prefix}_MAX_BYTES": str(wanted.max_payload_bytes or 262_144),
        "STELLWERK_SCORER_DEPLOYMENT": names.parent_of(replica),
    }


def _files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _take_over(path: Path) -> None:
    """Finishes a file whose writer is no more: without a torn line at its end."""
    try:
        with open(path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            whole = file.read().rfind(b"\n") + 1
            file.truncate(whole)
            if whole:
                os.rename(path, path.with_name(path.name.removesuffix(_OPEN)))
            else:
                path.unlink()
    except (BlockingIOError, FileNotFoundError):
        return  # its writer lives, or has just finished it


def _remove(batch: Sequence[_Finished]) -> None:
    for item in batch:
        item.path.unlink(missing_ok=True)
