"""Monitors: what endpoints are asked or answer, against the data that they were trained on."""

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask

from stellwerk import drift, names, states
from stellwerk._async.core import AsyncCore
from stellwerk_protos.inference.v1 import monitors_pb2, monitors_pb2_grpc

DEFAULT_CRON = "0 6 * * *"
_DEFAULT_WINDOW = timedelta(days=1)


class AsyncMonitors:
    """The monitors of a workspace.

    `baseline` is a version of a dataset (`digits:1`, or `digits` for the latest one of now) of CSV,
    Parquet, JSON lines or NumPy files; `baseline_path` one file or folder in it. `collection` is
    "request", "response", or a name of the script's. `columns`: those that are compared, else all that
    both sides have. `thresholds`: what drift is, by metric (psi, jensen-shannon, ks, chi-square) or by
    column and metric: `{"psi": 0.2, "age:ks": 0.1}`; none means psi over 0.2.

    `cron` has five fields, in `time_zone` (IANA, else UTC); "" is no schedule. `window`: how far back from
    a check the collected data goes. Fewer than `min_rows` rows (0: 100) are too few to compare; of more
    than `max_rows` (0: 100,000) on either side so many are drawn.
    """

    def __init__(self, core: AsyncCore, parent: str) -> None:
        self._core, self._parent = core, parent
        self._stub = monitors_pb2_grpc.MonitorServiceStub(core.channel)

    async def create(
        self,
        name: str,
        *,
        endpoint: str,
        baseline: str,
        collection: str = "request",
        deployment: str = "",
        baseline_path: str = "",
        columns: Sequence[str] = (),
        thresholds: Mapping[str, float] | None = None,
        cron: str = DEFAULT_CRON,
        time_zone: str = "",
        window: timedelta = _DEFAULT_WINDOW,
        min_rows: int = 0,
        max_rows: int = 0,
        paused: bool = False,
        description: str = "",
        tags: Mapping[str, str] | None = None,
        dry_run: bool = False,
    ) -> monitors_pb2.Monitor:
        """Creates a monitor; its first check is at the next time of its schedule, or by `check`.

        The answer has the next five times. With `dry_run` it is what would be created.
        """
        monitor = monitors_pb2.Monitor(
            endpoint=names.resource(self._parent, "endpoints", endpoint),
            deployment=deployment,
            collection=collection,
            baseline=names.version(self._parent, "datasets", baseline),
            baseline_path=baseline_path,
            columns=columns,
            thresholds=drift.thresholds(thresholds or {}),
            cron=cron,
            time_zone=time_zone,
            min_rows=min_rows,
            max_rows=max_rows,
            paused=paused,
            description=description,
            tags=tags,
        )
        monitor.window.FromTimedelta(window)
        request = monitors_pb2.CreateMonitorRequest(
            parent=self._parent, monitor_id=name, monitor=monitor, validate_only=dry_run
        )
        return await self._core.call(self._stub.CreateMonitor, request)

    async def get(self, name: str) -> monitors_pb2.Monitor:
        """Returns one monitor."""
        request = monitors_pb2.GetMonitorRequest(name=self._name(name))
        return await self._core.call(self._stub.GetMonitor, request)

    async def list(self, *, endpoint: str = "", limit: int | None = None) -> Sequence[monitors_pb2.Monitor]:
        """The monitors, by name: all, or those of one endpoint."""
        request = monitors_pb2.ListMonitorsRequest(
            parent=self._parent,
            endpoint=names.resource(self._parent, "endpoints", endpoint) if endpoint else "",
        )
        pages = await self._core.pages(self._stub.ListMonitors, request, limit)
        return [monitor for page in pages for monitor in page.monitors]

    async def update(
        self,
        name: str,
        *,
        baseline: str | None = None,
        collection: str | None = None,
        deployment: str | None = None,
        baseline_path: str | None = None,
        columns: Sequence[str] | None = None,
        thresholds: Mapping[str, float] | None = None,
        cron: str | None = None,
        time_zone: str | None = None,
        window: timedelta | None = None,
        min_rows: int | None = None,
        max_rows: int | None = None,
        paused: bool | None = None,
        description: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> monitors_pb2.Monitor:
        """Changes what is given; lists and mappings take the place of those that are there."""
        fields: dict[str, Any] = {
            "baseline": baseline and names.version(self._parent, "datasets", baseline),
            "collection": collection,
            "deployment": deployment,
            "baseline_path": baseline_path,
            "columns": columns,
            "thresholds": None if thresholds is None else drift.thresholds(thresholds),
            "cron": cron,
            "time_zone": time_zone,
            "min_rows": min_rows,
            "max_rows": max_rows,
            "paused": paused,
            "description": description,
            "tags": tags,
        }
        changed = {field: value for field, value in fields.items() if value is not None}
        monitor = monitors_pb2.Monitor(name=self._name(name), **changed)
        if window is not None:
            monitor.window.FromTimedelta(window)
            changed["window"] = window
        request = monitors_pb2.UpdateMonitorRequest(monitor=monitor, update_mask=FieldMask(paths=changed))
        return await self._core.call(self._stub.UpdateMonitor, request)

    async def pause(self, name: str) -> monitors_pb2.Monitor:
        """Lets the schedule rest; `check` still checks."""
        return await self.update(name, paused=True)

    async def resume(self, name: str) -> monitors_pb2.Monitor:
        """Goes on with the next time of the schedule; what was missed is not made up for."""
        return await self.update(name, paused=False)

    async def delete(self, name: str) -> monitors_pb2.Monitor:
        """Deletes a monitor and its checks; the collected data stays."""
        request = monitors_pb2.DeleteMonitorRequest(name=self._name(name))
        return await self._core.call(self._stub.DeleteMonitor, request)

    async def check(self, name: str, *, until: datetime | None = None) -> monitors_pb2.MonitorCheck:
        """Begins a check of the window that ends at `until`, now unless given, and returns it.

        `wait_check` waits for what it finds.
        """
        request = monitors_pb2.CheckMonitorRequest(name=self._name(name))
        if until is not None:
            request.end_time.FromDatetime(until.astimezone(UTC))
        return await self._core.call(self._stub.CheckMonitor, request)

    async def get_check(self, name: str, number: int | str = "latest") -> monitors_pb2.MonitorCheck:
        """One check of a monitor, by its number or the latest."""
        request = monitors_pb2.GetMonitorCheckRequest(
            name=names.resource(self._name(name), "checks", str(number))
        )
        return await self._core.call(self._stub.GetMonitorCheck, request)

    async def checks(self, name: str, *, limit: int | None = None) -> Sequence[monitors_pb2.MonitorCheck]:
        """The checks of a monitor, newest first; the last 1,000 are kept."""
        request = monitors_pb2.ListMonitorChecksRequest(parent=self._name(name))
        pages = await self._core.pages(self._stub.ListMonitorChecks, request, limit)
        return [check for page in pages for check in page.checks]

    async def watch_check(
        self, check: monitors_pb2.MonitorCheck | str
    ) -> AsyncIterator[monitors_pb2.MonitorCheck]:
        """The check now and after each change, until it has ended; by its full name, or as it was begun."""
        name = check if isinstance(check, str) else check.name
        request = monitors_pb2.WatchMonitorCheckRequest(name=name)
        revision = 0
        async for seen in self._core.stream(self._stub.WatchMonitorCheck, request):
            if seen.revision > revision:
                revision = seen.revision
                yield seen

    async def wait_check(self, check: monitors_pb2.MonitorCheck | str) -> monitors_pb2.MonitorCheck:
        """The check when it has ended: Completed with what it found, or Failed with a reason."""
        name = check if isinstance(check, str) else check.name
        async for seen in self.watch_check(name):
            if states.monitor_check(seen) in states.CHECK_OVER:
                return seen
        parent, _, number = name.rpartition("/checks/")
        return await self.get_check(parent, number)

    def _name(self, name: str) -> str:
        return names.resource(self._parent, "monitors", name)
