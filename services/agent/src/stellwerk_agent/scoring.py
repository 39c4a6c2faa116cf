"""One piece of work of a batch deployment: fetch the files, have them scored, bring the results away."""

import asyncio
import hashlib
import logging
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx

from stellwerk_agent.blobs import Blobs
from stellwerk_agent.calls import call
from stellwerk_agent.failure import StepFailed
from stellwerk_agent.files import is_inside, protect, remove
from stellwerk_agent.merging import concatenate
from stellwerk_platform import names
from stellwerk_protos.common.v1 import common_pb2
from stellwerk_protos.compute.v1 import workloads_pb2
from stellwerk_protos.inference.v1 import batches_pb2 as pb
from stellwerk_protos.inference.v1 import batches_pb2_grpc

log = logging.getLogger(__name__)
_PAGE = 1_000
_DEFAULT_TIMEOUT_SECONDS = 600
# Files of a mini-batch come within this, or within the time-out of `run` if that is longer.
_FETCH_SECONDS = 600.0
# A worker that was killed comes back sooner, or never.
_NOT_READY_SECONDS = 600.0
_ASK_AGAIN_SECONDS = 1.0
# More than the time-out, before a server that does not keep it is given up.
_MORE_SECONDS = 120.0
_CURE = "It is tried again by itself; check the S3 server (`stellwerk status`) and its free space."
_ACTIONS = {
    workloads_pb2.BATCH_OUTPUT_ACTION_BY_FILE: "BY_FILE",
    workloads_pb2.BATCH_OUTPUT_ACTION_SUMMARY_ONLY: "SUMMARY_ONLY",
}


class ScoringFailed(StepFailed):
    """The scoring server did not score the mini-batch, and said why."""


class Dropped(Exception):
    """The scoring server has ended: nobody scores this here any more."""


class Scoring:
    """Works below `folder`, a folder for each piece of work; `has_ended` tells that the server is no more."""

    def __init__(
        self,
        folder: Path,
        blobs: Blobs,
        service: "batches_pb2_grpc.BatchServiceAsyncStub",
        server: httpx.AsyncClient,
        has_ended: Callable[[], bool],
    ) -> None:
        self._folder = folder
        self._blobs = blobs
        self._service = service
        self._server = server
        self._has_ended = has_ended

    async def score(self, lease: pb.MiniBatchLease, folder: str, finish: pb.FinishMiniBatchRequest) -> None:
        """Has the files scored; sets results and counts. Raises `StepFailed`, `PlatformError`, `Dropped`."""
        place = self._folder / folder
        await self._fetch_inputs(lease, place)
        answer = await self._ask(lease, folder)
        finish.succeeded_file_count = answer["succeeded_file_count"]
        finish.row_count = answer["row_count"]
        finish.results.extend(await self._deliver(lease.name, f"{folder}/results", answer["files"]))

    async def merge(self, lease: pb.MiniBatchLease, folder: str, finish: pb.FinishMiniBatchRequest) -> None:
        """Puts the results of the job together, in the order of its mini-batches."""
        place, job = self._folder / folder, names.parent_of(lease.name)
        request = pb.ListMiniBatchesRequest(parent=job, state=pb.MINI_BATCH_STATE_SUCCEEDED, page_size=_PAGE)
        parts: dict[int, Path] = {}
        while True:
            page = await call(self._service.ListMiniBatches, request)
            parts |= await self._fetch_results(page.mini_batches, place, f"page-{len(parts)}")
            finish.succeeded_file_count += sum(item.succeeded_file_count for item in page.mini_batches)
            finish.row_count += sum(item.row_count for item in page.mini_batches)
            request.page_token = page.next_page_token
            if not page.next_page_token:
                break
        whole = place / lease.merge_into
        await asyncio.to_thread(concatenate, [parts[index] for index in sorted(parts)], whole)
        finish.results.extend(await self._deliver(job, folder, [lease.merge_into]))

    async def _fetch_inputs(self, lease: pb.MiniBatchLease, place: Path) -> None:
        seconds = max(_FETCH_SECONDS, _timeout_seconds(lease))
        try:
            async with asyncio.timeout(seconds):
                await self._fetch(lease.files, place, "files", lease.name, writable=False)
        except TimeoutError:
            raise StepFailed(
                "INPUT_NOT_FETCHED",
                f"The files did not come within {seconds:g} s.",
                _CURE,
            ) from None
        await asyncio.to_thread(protect, place / "files")

    async def _fetch_results(
        self, mini_batches: Sequence[pb.MiniBatch], place: Path, name: str
    ) -> dict[int, Path]:
        found = {int(names.id_of(item.name)): item.results[0] for item in mini_batches if item.results}
        files = [
            common_pb2.File(path=str(index), sha256=result.sha256, size_bytes=result.size_bytes)
            for index, result in found.items()
        ]
        if files:
            await self._fetch(files, place, name, mini_batches[0].name, writable=True)
        return {index: place / name / str(index) for index in found}

    async def _fetch(
        self, files: Sequence[common_pb2.File], place: Path, name: str, job: str, *, writable: bool
    ) -> None:
        # Needed once: in the cache of the node a large dataset would stay for ever.
        workspace = names.workspace_of(job)
        await self._blobs.apart(place).fetch(workspace, files, place / name, writable=writable)
        await asyncio.to_thread(remove, place / "blobs")

    async def _ask(self, lease: pb.MiniBatchLease, folder: str) -> dict[str, Any]:
        """What the scoring server answers; raises `ScoringFailed` and `Dropped`."""
        settings, seconds = lease.settings, _timeout_seconds(lease)
        body = {
            "folder": folder,
            "files": [file.path for file in lease.files],
            "action": _ACTIONS.get(settings.output_action, "APPEND_ROW"),
            "output_file_name": settings.output_file_name or "predictions.csv",
            "timeout_ms": seconds * 1000,
        }
        headers = {"authorization": f"Bearer {lease.token}"}
        timeout = httpx.Timeout(30, read=seconds + _MORE_SECONDS)
        loop = asyncio.get_running_loop()
        patience_ends = loop.time() + _NOT_READY_SECONDS
        while True:
            try:
                response = await self._server.post("/mini-batch", json=body, headers=headers, timeout=timeout)
            except httpx.ReadTimeout:
                raise ScoringFailed("SCORING_TIMEOUT", "The scoring server does not answer.") from None
            except httpx.TransportError as error:
                if self._has_ended():
                    raise Dropped from error
                log.warning("%s: the scoring server cannot be reached: %r", lease.name, error)
                failure = ScoringFailed("REPLICA_UNREACHABLE", f"The scoring server is away: {error!r}.")
            else:
                if response.is_success:
                    answer: dict[str, Any] = response.json()
                    return answer
                failure = _failure_of(response)
                if response.status_code not in (
                    httpx.codes.TOO_MANY_REQUESTS,
                    httpx.codes.SERVICE_UNAVAILABLE,
                ):
                    raise failure
            # It never reached the script.
            if loop.time() > patience_ends:
                raise failure
            await asyncio.sleep(_ASK_AGAIN_SECONDS)

    async def _deliver(self, name: str, folder: str, paths: Sequence[str]) -> list[common_pb2.File]:
        """Brings files to the blob store; raises `StepFailed`."""
        root = os.path.join(os.path.realpath(self._folder), folder)
        files = await asyncio.to_thread(lambda: [_file(root, path) for path in paths])
        by_digest = {file.sha256: Path(root, file.path) for file in files}
        try:
            uploaded = await self._blobs.upload(names.workspace_of(name), by_digest) if files else None
        except StepFailed as failure:
            failure.reason.cure = _CURE
            raise
        if uploaded is not None and uploaded.changed:
            raise StepFailed(
                "RESULTS_CHANGED",
                "Results changed while they were uploaded.",
                "Start no processes that write on.",
            )
        return files


def _timeout_seconds(lease: pb.MiniBatchLease) -> int:
    return lease.settings.timeout_seconds or _DEFAULT_TIMEOUT_SECONDS


def _failure_of(response: httpx.Response) -> ScoringFailed:
    try:
        document = response.json()
        return ScoringFailed(document["reason"], document["message"], document.get("cure", ""))
    except (ValueError, KeyError, TypeError):
        return ScoringFailed("SCORING_FAILED", f"The scoring server answered {response.status_code}.")


def _file(root: str, path: str) -> common_pb2.File:
    """A file below the root, which is a real path; raises `ScoringFailed` for what is none.

    The script may have put a link there, which would give away what is not its own, or a pipe, which never
    ends.
    """
    place = os.path.join(root, path)
    if is_inside(path) and os.path.realpath(place) == place:
        with open(os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                return common_pb2.File(path=path, sha256=digest, size_bytes=file.tell())
    raise ScoringFailed(
        "RESULT_UNSAFE",
        f"{path[:200]!r} among the results is no file of its own.",
        "Let the script return its results, and put nothing beside its files.",
    )
