"""What a run leaves in `./outputs`."""

import asyncio
import hashlib
import os
from pathlib import Path

from stellwerk_agent.blobs import Blobs
from stellwerk_agent.calls import call
from stellwerk_agent.failure import StepFailed
from stellwerk_platform import names
from stellwerk_platform.errors import PlatformError
from stellwerk_protos.common.v1 import common_pb2
from stellwerk_protos.runs.v1 import artifacts_pb2, artifacts_pb2_grpc

FOLDER = "outputs"
_BATCH = 1_000


async def collect(
    work: Path, run: str, blobs: Blobs, artifacts: "artifacts_pb2_grpc.ArtifactServiceAsyncStub"
) -> str:
    """Uploads `outputs/**` of the working folder, records it under the run, and says what there was."""
    files = await asyncio.to_thread(scan, work)
    try:
        sent = await blobs.upload(names.workspace_of(run), files)
        for start in range(0, len(files), _BATCH):
            batch = [file for file, _ in files[start : start + _BATCH]]
            request = artifacts_pb2.CreateArtifactsRequest(parent=run, files=batch)
            await call(artifacts.CreateArtifacts, request)
    except PlatformError as error:
        raise StepFailed(
            "OUTPUT_COLLECTION_FAILED",
            f"The outputs are refused: {error.reason}: {error.message}",
            error.cure or "See the agent's log.",
        ) from error
    return f"{len(files)} files, {sent} new"


def scan(work: Path) -> list[tuple[common_pb2.File, Path]]:
    """The regular files, by path. Links are followed while they stay below the working folder."""
    root = work.resolve()
    found = []
    for folder, folders, file_names in os.walk(work / FOLDER, followlinks=False):
        folders.sort()
        for name in sorted(file_names):
            path = Path(folder, name)
            if path.resolve().is_relative_to(root) and path.is_file():
                found.append((_describe(path, work), path))
    return found


def _describe(path: Path, work: Path) -> common_pb2.File:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        status = os.fstat(file.fileno())
    # A name that is no UTF-8 cannot travel as text; what cannot be read is replaced.
    relative = os.fsencode(path.relative_to(work)).decode(errors="replace")
    return common_pb2.File(
        path=relative, sha256=digest, size_bytes=status.st_size, executable=bool(status.st_mode & 0o100)
    )
