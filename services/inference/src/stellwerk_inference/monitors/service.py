"""MonitorService: parse, check, store, reply."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from stellwerk_inference.changes import Changes
from stellwerk_inference.endpoints.domain import check_open
from stellwerk_inference.monitors import baselines, domain, requests
from stellwerk_inference.monitors.baselines import Baselines
from stellwerk_inference.monitors.store import MonitorStore
from stellwerk_inference.states import LEAVING
from stellwerk_inference.store import Store
from stellwerk_inference.upstream import Upstream
from stellwerk_platform import names
from stellwerk_platform.auth import current_caller
from stellwerk_platform.errors import NotFound
from stellwerk_protos.inference.v1 import monitors_pb2 as pb
from stellwerk_protos.inference.v1 import monitors_pb2_grpc
from stellwerk_protos.registry.v1.datasets_pb2 import DatasetVersion


class MonitorService(monitors_pb2_grpc.MonitorServiceServicer):
    """The servicer."""

    def __init__(self, monitors: MonitorStore, store: Store, changes: Changes, upstream: Upstream) -> None:
        self._monitors = monitors
        self._store = store
        self._changes = changes
        self._upstream = upstream
        self._baselines = Baselines(upstream)

    async def CreateMonitor(self, request: pb.CreateMonitorRequest, context: Any) -> pb.Monitor:
        wanted = requests.wanted(request)
        await self._upstream.check_workspace(request.parent)
        await self._baselines.check(wanted, await self._resolve(wanted))
        monitor = domain.new(wanted, current_caller().subject, datetime.now(UTC))
        if request.validate_only:
            await self._monitors.check_room(request.parent)
            return _shown(monitor)
        return _shown(await self._monitors.create(monitor, request.request_id))

    async def _resolve(self, monitor: pb.Monitor) -> DatasetVersion:
        """Sees that all that the monitor names is there; the baseline, which it returns, gets its number.

        Raises `NotFound`.
        """
        check_open(await self._store.endpoints.get(monitor.endpoint))
        if monitor.deployment:
            name = f"{monitor.endpoint}/deployments/{monitor.deployment}"
            found = await self._store.deployments.find(name)
            if found is None or found.state in LEAVING:
                raise NotFound(
                    "DEPLOYMENT_NOT_FOUND",
                    f"There is no deployment {name}.",
                    "List the deployments of the endpoint.",
                )
        version = await self._upstream.dataset(monitor.baseline)
        monitor.baseline = version.name
        return version

    async def GetMonitor(self, request: pb.GetMonitorRequest, context: Any) -> pb.Monitor:
        names.parse(requests.PATTERN, request.name)
        return _shown(await self._monitors.get(request.name))

    async def ListMonitors(self, request: pb.ListMonitorsRequest, context: Any) -> pb.ListMonitorsResponse:
        names.parse("workspaces/*", request.parent)
        await self._upstream.check_workspace(request.parent)
        monitors, token = await self._monitors.page(
            request.parent, request.endpoint, request.page_size, request.page_token
        )
        return pb.ListMonitorsResponse(monitors=monitors, next_page_token=token)

    async def UpdateMonitor(self, request: pb.UpdateMonitorRequest, context: Any) -> pb.Monitor:
        names.parse(requests.PATTERN, request.monitor.name)
        wanted = requests.changed(await self._monitors.get(request.monitor.name), request)
        if not requests.WITHOUT_NAMES.issuperset(request.update_mask.paths):
            version = await self._resolve(wanted)
            if not baselines.FIELDS.isdisjoint(request.update_mask.paths):
                await self._baselines.check(wanted, version)
        now = datetime.now(UTC)
        updated = await self._monitors.update(
            wanted.name, lambda newest: domain.update(newest, wanted, request, now), request.etag
        )
        return _shown(updated)

    async def DeleteMonitor(self, request: pb.DeleteMonitorRequest, context: Any) -> pb.Monitor:
        names.parse(requests.PATTERN, request.name)
        return await self._monitors.delete(request.name)

    async def CheckMonitor(self, request: pb.CheckMonitorRequest, context: Any) -> pb.MonitorCheck:
        names.parse(requests.PATTERN, request.name)
        end = requests.end_time(request, datetime.now(UTC))
        return await self._monitors.begin(request.name, end, request.request_id)

    async def GetMonitorCheck(self, request: pb.GetMonitorCheckRequest, context: Any) -> pb.MonitorCheck:
        names.parse(requests.CHECK, request.name)
        return await self._monitors.check(request.name)

    async def ListMonitorChecks(
        self, request: pb.ListMonitorChecksRequest, context: Any
    ) -> pb.ListMonitorChecksResponse:
        names.parse(requests.PATTERN, request.parent)
        await self._monitors.get(request.parent)
        checks, token = await self._monitors.checks_page(
            request.parent, request.page_size, request.page_token
        )
        return pb.ListMonitorChecksResponse(checks=checks, next_page_token=token)

    async def WatchMonitorCheck(
        self, request: pb.WatchMonitorCheckRequest, context: Any
    ) -> AsyncIterator[pb.MonitorCheck]:
        names.parse(requests.CHECK, request.name)
        name, revision = (await self._monitors.check(request.name)).name, 0
        with self._changes.watch() as waiter:
            while True:
                await waiter.next()
                check = await self._monitors.check(name)
                if check.revision != revision:
                    revision = check.revision
                    yield check
                if check.state != domain.RUNNING:
                    return


def _shown(monitor: pb.Monitor) -> pb.Monitor:
    monitor.upcoming_check_times.extend(domain.upcoming(monitor))
    return monitor
