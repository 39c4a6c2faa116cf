"""Finishes deletions of workspaces, across restarts: every step can be repeated.

First everything that lives is asked to end, for a while; then each service removes what
it has, again and again, until nothing was found twice in a row with a pause between: what
was under way when the workspace was marked (a call that had been admitted, an event of an
outbox, a last flush of an agent) has arrived by then and is removed too.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta

import grpc

from stellwerk_platform import failpoints
from stellwerk_platform.errors import as_platform_error
from stellwerk_protos.platform.v1 import platform_pb2 as pb
from stellwerk_protos.platform.v1 import platform_pb2_grpc
from stellwerk_protos.registry.v1.workspaces_pb2 import WorkspaceDeletion
from stellwerk_registry.deletion.store import DeletionStore

log = logging.getLogger(__name__)
_SWEEP_SECONDS = 5.0
_RETRY_SECONDS = 1.0
_POLL_SECONDS = 0.5
_SETTLE_SECONDS = 2.0
_COUNT_SECONDS = 60.0
_REMOVE_SECONDS = 300.0
Remove = Callable[[str, bool], Awaitable[pb.WorkspaceData]]
Count = Callable[[str], Awaitable[pb.WorkspaceData]]


class Remote:
    """What another service keeps."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = platform_pb2_grpc.WorkspaceDataServiceStub(channel)

    async def count(self, workspace: str) -> pb.WorkspaceData:
        """Counts it."""
        request = pb.CountWorkspaceDataRequest(name=workspace)
        return await self._stub.CountWorkspaceData(request, timeout=_COUNT_SECONDS)

    async def remove(self, workspace: str, abandon: bool) -> pb.WorkspaceData:
        """Removes what it can now."""
        request = pb.RemoveWorkspaceDataRequest(name=workspace, abandon=abandon)
        return await self._stub.RemoveWorkspaceData(request, timeout=_REMOVE_SECONDS)


class Remover:
    """The background work; `counts` and `removes` are by service, in the order in which they remove."""

    def __init__(
        self,
        store: DeletionStore,
        counts: Mapping[str, Count],
        removes: Mapping[str, Remove],
        end_seconds: float,
    ) -> None:
        self._store = store
        self._counts = counts
        self._removes = removes
        self._end = timedelta(seconds=end_seconds)
        self._awake = asyncio.Event()
        self._awake.set()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def wake(self) -> None:
        """Says that there is something to do."""
        self._awake.set()

    async def count(self, workspace: str) -> dict[str, pb.WorkspaceData]:
        """What every service has of a workspace."""
        found = await asyncio.gather(*(count(workspace) for count in self._counts.values()))
        return dict(zip(self._counts, found, strict=True))

    async def run(self) -> None:
        """For ever: when woken, and every few seconds for what a killed process left."""
        try:
            while True:
                try:
                    async with asyncio.timeout(_SWEEP_SECONDS):
                        await self._awake.wait()
                except TimeoutError:
                    pass
                self._awake.clear()
                await self._begin_all()
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _begin_all(self) -> None:
        try:
            for deletion in await self._store.unfinished():
                if deletion.name not in self._tasks:
                    task = asyncio.create_task(self._try(deletion), name=deletion.name)
                    task.add_done_callback(lambda done: self._tasks.pop(done.get_name(), None))
                    self._tasks[deletion.name] = task
        except Exception as error:
            log.warning("Deletions wait: %s", error)

    async def _try(self, deletion: WorkspaceDeletion) -> None:
        """Until it is done, whatever is away meanwhile."""
        while True:
            try:
                return await self._delete(deletion)
            except Exception as error:
                known = as_platform_error(error)
                log.warning("%s is not gone yet: %s", deletion.workspace, error, exc_info=known is None)
                await asyncio.sleep(_RETRY_SECONDS)

    async def _delete(self, deletion: WorkspaceDeletion) -> None:
        failpoints.hit("deletion.begun")
        until = deletion.create_time.ToDatetime(UTC) + self._end
        quiet = 0
        while quiet < 2:
            abandon = datetime.now(UTC) > until
            found, lives = await self._pass(deletion, abandon)
            quiet = 0 if found or lives else quiet + 1
            if quiet < 2:
                await asyncio.sleep(_POLL_SECONDS if lives else _SETTLE_SECONDS)
        failpoints.hit("deletion.removed")
        await self._store.finish(deletion.name)
        failpoints.hit("deletion.finished")
        log.info("%s is gone", deletion.workspace)

    async def _pass(self, deletion: WorkspaceDeletion, abandon: bool) -> tuple[bool, bool]:
        """Asks each service once; whether something was found, and whether something lives.

        While something lives nobody further down removes anything: a run that ends still
        needs its allocation, and its blobs.
        """
        found = False
        for service, remove in self._removes.items():
            data = await remove(deletion.workspace, abandon)
            failpoints.hit("deletion.step")
            if data.living:
                return found, True
            if data.counts or data.size_bytes:
                found = True
                await self._store.note(deletion.name, service, data)
        return found, False
