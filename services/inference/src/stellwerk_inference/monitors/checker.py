"""Works on checks, a few at a time: finds what to compare, has it compared, and stores what came of it.

A check belongs to the process that has its lease. One whose process has died is taken up again by
another, or by the next of its name; after so many times it has failed.
"""

import asyncio
import logging
import random
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf import json_format

from stellwerk_inference.changes import Changes
from stellwerk_inference.collected.store import CollectedStore
from stellwerk_inference.monitors import domain, process, requests
from stellwerk_inference.monitors.baselines import blob
from stellwerk_inference.monitors.compare.failures import CheckFailed
from stellwerk_inference.monitors.store import LEASE_SECONDS, MonitorStore
from stellwerk_inference.monitors.turns import Turns
from stellwerk_inference.states import LEAVING
from stellwerk_inference.store import Store
from stellwerk_inference.upstream import Upstream
from stellwerk_platform import failpoints, names
from stellwerk_platform.errors import NotFound, PlatformError, as_platform_error
from stellwerk_platform.journal import Fact
from stellwerk_protos.common.v1.common_pb2 import File, Reason
from stellwerk_protos.inference.v1 import collections_pb2
from stellwerk_protos.inference.v1 import monitors_pb2 as pb

log = logging.getLogger(__name__)
_IDLE_SECONDS = 5.0
_MOST_TRIES = 5
# While another service is away.
_ASK_SECONDS, _ASK_PAUSE_SECONDS = 120.0, 2.0
_MOST_BYTES, _MOST_FILES, _MOST_LISTED = 2 << 30, 5_000, 100_000
_PAGE = 1_000


class Checker:
    """One of each process; what it works on is in the store."""

    def __init__(
        self,
        monitors: MonitorStore,
        store: Store,
        collected: CollectedStore,
        changes: Changes,
        upstream: Upstream,
        places: int,
    ) -> None:
        self._monitors = monitors
        self._store = store
        self._collected = collected
        self._changes = changes
        self._upstream = upstream
        self._places = places
        self._turns = Turns(places)
        self._claiming = asyncio.Lock()

    async def run(self) -> None:
        """Works for ever, on as many checks at a time as there are places."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._places):
                group.create_task(self._fill())

    async def _fill(self) -> None:
        """Works on one check after the other."""
        # A name for each place: a check whose lease was lost may be taken up by the place beside.
        pause, owner = 0.0, uuid.uuid4().hex
        # One that was begun, or that has ended and left a place of its workspace to another.
        with self._changes.watch("monitor_check") as waiter:
            while True:
                await waiter.next(pause)
                pause = _IDLE_SECONDS
                try:
                    while (claimed := await self._claim(owner)) is not None:
                        try:
                            await self._work(*claimed, owner)
                        finally:
                            self._turns.end(_workspace(claimed[0]))
                except Exception:
                    log.warning("A check goes on later", exc_info=True)

    async def _claim(self, owner: str) -> tuple[pb.MonitorCheck, int] | None:
        """The check whose turn it is, and how often it was taken up."""
        async with self._claiming:
            waiting = await self._monitors.waiting()
            for workspace in self._turns.order(waiting):
                monitors = [name for name in waiting if names.parent_of(name) == workspace]
                if (claimed := await self._monitors.claim(owner, monitors)) is not None:
                    self._turns.begin(workspace)
                    return claimed
        return None

    async def _work(self, check: pb.MonitorCheck, tries: int, owner: str) -> None:
        """Ends the check, unless it is lost meanwhile."""
        failpoints.hit("inference.check_claimed")
        work = asyncio.create_task(self._outcome(check, tries))
        renewal = asyncio.create_task(self._renew(check, owner, work))
        try:
            end = await work
        except asyncio.CancelledError:
            if not _is_stopping():
                return  # the check is gone, or somebody else's
            # The process stops: another need not wait for the end of the lease.
            await asyncio.shield(self._monitors.release(check.name, owner))
            raise
        finally:
            work.cancel()
            renewal.cancel()
        failpoints.hit("inference.check_compared")
        try:
            await self._monitors.finish(check, owner, end)
        except NotFound:
            log.info("%s is gone", check.name)

    async def _renew(self, check: pb.MonitorCheck, owner: str, work: "asyncio.Task[Any]") -> None:
        """Keeps the lease; ends the work when it is lost."""
        while True:
            await asyncio.sleep(LEASE_SECONDS / 3)
            try:
                if not await self._monitors.renew(check.name, owner):
                    break
            except Exception:
                log.warning("The lease of %s is renewed later", check.name, exc_info=True)
        work.cancel()

    async def _outcome(self, check: pb.MonitorCheck, tries: int) -> Callable[[pb.MonitorCheck], Fact]:
        """What becomes of the check."""
        try:
            if tries > _MOST_TRIES:
                raise CheckFailed(
                    "CHECK_LOST",
                    f"The service ended {_MOST_TRIES} times while it was at this check.",
                    "See the log of `inference` (`stellwerk logs inference`), and report it.",
                )
            monitor = await self._monitors.get(names.parent_of(check.name))
            request = await self._request(monitor, check)
            found = await process.compare(request) if request["collected"] else {}
            result = json_format.ParseDict(found, pb.MonitorCheck())
            return lambda current: domain.complete(current, result, monitor, datetime.now(UTC))
        except (CheckFailed, PlatformError) as error:
            code = error.code if isinstance(error, CheckFailed) else error.reason
            reason = Reason(code=code, message=error.message, cure=error.cure)
            return lambda current: domain.fail(current, reason, datetime.now(UTC))

    async def _request(self, monitor: pb.Monitor, check: pb.MonitorCheck) -> dict[str, Any]:
        """What the comparison gets; what is away is asked again. Raises `CheckFailed`, `PlatformError`."""
        end = asyncio.get_running_loop().time() + _ASK_SECONDS
        while True:
            try:
                return await self._gather(monitor, check)
            except Exception as error:
                meant = as_platform_error(error)
                if meant is None:
                    raise
                # A file whose time is over leaves the index first: asked again, it is not named any more.
                is_passing = meant.retryable or meant.reason == "BLOB_NOT_FOUND"
                if not is_passing or asyncio.get_running_loop().time() > end:
                    raise meant from error
                log.info("%s waits: %s", check.name, meant)
            await asyncio.sleep(_ASK_PAUSE_SECONDS)

    async def _gather(self, monitor: pb.Monitor, check: pb.MonitorCheck) -> dict[str, Any]:
        endpoint = await self._store.endpoints.find(monitor.endpoint)
        if endpoint is None or endpoint.state in LEAVING:
            raise CheckFailed(
                "ENDPOINT_NOT_FOUND",
                f"There is no endpoint {monitor.endpoint}.",
                "Delete the monitor, or create the endpoint again.",
            )
        workspace = names.parent_of(monitor.name)
        version = await self._upstream.dataset(monitor.baseline)
        baseline = requests.baseline_files(version, monitor.baseline_path)
        collected = await self._files(monitor, check)
        digests = list({file.sha256 for file in (*baseline, *collected)})
        urls = await self._upstream.download_urls(workspace, digests) if collected else {}
        return {
            "collection": monitor.collection,
            "start": check.window_start_time.ToDatetime(UTC).isoformat(),
            "end": check.window_end_time.ToDatetime(UTC).isoformat(),
            "baseline": [blob(file, urls) for file in baseline],
            "collected": [blob(file, urls) for file in collected],
            "columns": list(monitor.columns),
            "thresholds": [
                {
                    "metric": pb.DriftMetric.Name(entry.metric),
                    "column": entry.column,
                    "threshold": entry.threshold,
                }
                for entry in monitor.thresholds
            ],
            "min_rows": monitor.min_rows,
            "max_rows": monitor.max_rows,
            "seed": _seed(check),
        }

    async def _files(self, monitor: pb.Monitor, check: pb.MonitorCheck) -> list[File]:
        """Files that may have events of the window; drawn at random where there are very many."""
        request = collections_pb2.ListCollectedFilesRequest(
            parent=monitor.endpoint,
            deployment=monitor.deployment,
            collection=monitor.collection,
            page_size=_PAGE,
        )
        first = check.window_start_time.ToDatetime(UTC) - timedelta(hours=1)
        last = check.window_end_time.ToDatetime(UTC)
        found: list[File] = []
        while len(found) < _MOST_LISTED:
            page, request.page_token = await self._collected.page(request, first, last)
            found += [item.file for item in page]
            if not request.page_token:
                break
        random.Random(_seed(check)).shuffle(found)
        chosen, room = [], _MOST_BYTES
        for file in found[:_MOST_FILES]:
            room -= file.size_bytes
            if room < 0:
                break
            chosen.append(file)
        return sorted(chosen, key=lambda file: file.path)


def _is_stopping() -> bool:
    """Whether it is this task that was canceled, and not what it waits for; both may be."""
    current = asyncio.current_task()
    return current is not None and current.cancelling() > 0


def _workspace(check: pb.MonitorCheck) -> str:
    return names.parent_of(names.parent_of(check.name))


def _seed(check: pb.MonitorCheck) -> int:
    """The same for each try of a check, so that it finds the same."""
    return int(names.id_of(check.name))
