# Generated from ../_async/reading.py by scripts/generate_sync.py; do not edit.
"""What a run logged: metrics, records and log text."""

import codecs
from collections.abc import Iterator, Mapping, Sequence

from stellwerk import records
from stellwerk._sync.core import Core
from stellwerk.log_text import LAST_LINES_BYTES, Stamper, last_lines
from stellwerk.points import Point, Series, sampling, unpack
from stellwerk.records import LoggedRecord
from stellwerk_protos.runs.v1 import (
    logs_pb2,
    logs_pb2_grpc,
    metrics_pb2,
    metrics_pb2_grpc,
    runs_pb2,
)


class LogReading:
    """What has logs: a run, or a replica of a deployment."""

    _core: Core

    @property
    def name(self) -> str:
        """The full name."""
        raise NotImplementedError

    def logs(self) -> Sequence[logs_pb2.Log]:
        """The logs and their sizes."""
        stub = logs_pb2_grpc.LogServiceStub(self._core.channel)
        return (self._core.call(stub.ListLogs, logs_pb2.ListLogsRequest(parent=self.name))).logs

    def log(
        self, *, log: str = "", follow: bool = False, offset: int = 0, tail: int = 0, times: bool = False
    ) -> Iterator[str]:
        """The text of a log in pieces; with `follow` until the run is over.

        Without `log` it is what the command wrote to stdout and stderr. `offset` counts bytes; `tail`
        begins with the last so many lines instead. With `times` each line begins with the time (UTC)
        at which the node read it.
        """
        stub = logs_pb2_grpc.LogServiceStub(self._core.channel)
        if tail:
            offset = self._tail_offset(log, tail)
        request = logs_pb2.ReadLogRequest(parent=self.name, log=log, offset=offset, follow=follow)
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        stamper = Stamper() if times else None
        for part in self._core.stream(stub.ReadLog, request):
            request.offset = part.offset + len(part.data)
            if text := decoder.decode(part.data):
                yield stamper.stamp(text, part.time) if stamper is not None else text
        if text := decoder.decode(b"", final=True):
            yield text

    def _tail_offset(self, log: str, lines: int) -> int:
        """Where the last lines begin."""
        stub = logs_pb2_grpc.LogServiceStub(self._core.channel)
        for tail_bytes in LAST_LINES_BYTES:
            request = logs_pb2.ReadLogRequest(parent=self.name, log=log, tail_bytes=tail_bytes)
            start, data = -1, b""
            for part in self._core.stream(stub.ReadLog, request):
                start = part.offset if start < 0 else start
                data += part.data
                # After a break it goes on there, and no more by its distance from the end.
                request.offset, request.tail_bytes = part.offset + len(part.data), 0
            position = last_lines(data, lines)
            if position is not None or start <= 0:
                break
        return max(start, 0) + (position or 0)

    def search_log(
        self, query: str, *, log: str = "", limit: int | None = None
    ) -> Sequence[logs_pb2.LogLine]:
        """The lines of a log that hold a text, first to last; upper and lower case are the same."""
        stub = logs_pb2_grpc.LogServiceStub(self._core.channel)
        request = logs_pb2.SearchLogRequest(parent=self.name, log=log, query=query)
        pages = self._core.pages(stub.SearchLog, request, limit)
        return [line for page in pages for line in page.lines]


class ReplicaLogs(LogReading):
    """The logs of one replica, by its full name."""

    def __init__(self, core: Core, name: str) -> None:
        self._core = core
        self._name = name

    @property
    def name(self) -> str:
        """The full name."""
        return self._name


class Reading(LogReading):
    """The part of a run that reads what was logged."""

    message: runs_pb2.Run

    @property
    def name(self) -> str:
        """The full name."""
        return self.message.name

    def metrics(self) -> Sequence[metrics_pb2.MetricSummary]:
        """What is known about each metric without its points."""
        stub = metrics_pb2_grpc.MetricServiceStub(self._core.channel)
        request = metrics_pb2.ListMetricsRequest(parent=self.name)
        pages = self._core.pages(stub.ListMetrics, request)
        return [metric for page in pages for metric in page.metrics]

    def history(self, metric: str) -> Sequence[Point]:
        """All points of one metric, in the order stored."""
        stub = metrics_pb2_grpc.MetricServiceStub(self._core.channel)
        request = metrics_pb2.GetMetricHistoryRequest(parent=self.name, metric=metric)
        points: list[Point] = []
        while True:
            page = self._core.call(stub.GetMetricHistory, request)
            points += unpack(page.columns)
            if not page.next_page_token:
                return points
            request.page_token = page.next_page_token

    def watch_metrics(self) -> Iterator[Mapping[str, Sequence[Point]]]:
        """The points by metric, first what is stored, then what arrives; ends with the run."""
        stub = metrics_pb2_grpc.MetricServiceStub(self._core.channel)
        request = metrics_pb2.WatchMetricsRequest(parent=self.name)
        for part in self._core.stream(stub.WatchMetrics, request):
            request.cursor = part.cursor or request.cursor
            yield {columns.metric: unpack(columns) for columns in part.columns}

    def histories(
        self, *metrics: str, method: str = "lttb", max_points: int = 0
    ) -> Mapping[str, Sequence[Point]]:
        """Several metrics at once (all unless named), made shorter by the platform; see `get_series`."""
        workspace = self.name.rsplit("/runs/", 1)[0]
        found = get_series(self._core, workspace, [self.name], metrics, method, max_points)
        return {series.metric: series.points for series in found}

    def records(self, record: str = "") -> Sequence[LoggedRecord]:
        """Lists, rows, tables, pictures and charts, in the order logged; only those of a name if given."""
        stub = metrics_pb2_grpc.MetricServiceStub(self._core.channel)
        request = metrics_pb2.ListRecordsRequest(parent=self.name, record=record)
        pages = self._core.pages(stub.ListRecords, request)
        return records.joined(item for page in pages for item in page.records)


def get_series(
    core: Core,
    workspace: str,
    runs: Sequence[str],
    metrics: Sequence[str],
    method: str,
    max_points: int,
) -> Sequence[Series]:
    """Histories of metrics of runs (full names), up to 100 each, as the platform makes them shorter.

    `method` is "lttb" (keeps the look of the line), "min-max" (keeps every extreme) or "exact";
    `max_points` a series is 3 to 10,000, 0 means 1,000.
    """
    stub = metrics_pb2_grpc.MetricServiceStub(core.channel)
    request = metrics_pb2.GetMetricHistoriesRequest(
        parent=workspace, runs=runs, metrics=metrics, sampling=sampling(method), max_points=max_points
    )
    found = core.call(stub.GetMetricHistories, request)
    return [Series(item.run, item.columns.metric, item.count, unpack(item.columns)) for item in found.series]
