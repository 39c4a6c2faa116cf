"""MetricService: what is stored, and what is being stored."""

from collections.abc import AsyncIterator
from typing import Any

from stellwerk_platform import names, paging
from stellwerk_platform.errors import NotFound
from stellwerk_protos.runs.v1 import metrics_pb2 as pb
from stellwerk_protos.runs.v1 import metrics_pb2_grpc
from stellwerk_runs.changes import Changes
from stellwerk_runs.ingest.domain import METRICS, RECORDS
from stellwerk_runs.ingest.store import IngestStore
from stellwerk_runs.ingest.streams import Streams
from stellwerk_runs.metrics.histories import Histories
from stellwerk_runs.metrics.store import MetricStore, Position
from stellwerk_runs.records.store import RecordStore

_RUN = "workspaces/*/runs/*"
_HISTORY_POINTS = 100_000


class MetricService(metrics_pb2_grpc.MetricServiceServicer):
    """The servicer."""

    def __init__(
        self,
        store: MetricStore,
        records: RecordStore,
        ingest: IngestStore,
        streams: Streams,
        changes: Changes,
    ) -> None:
        self._store = store
        self._records = records
        self._histories = Histories(store, streams)
        self._ingest = ingest
        self._streams = streams
        self._changes = changes

    async def ListMetrics(self, request: pb.ListMetricsRequest, context: Any) -> pb.ListMetricsResponse:
        names.parse(_RUN, request.parent)
        await self._streams.settle(METRICS, request.parent)
        metrics, token = await self._store.summaries(request.parent, request.page_size, request.page_token)
        return pb.ListMetricsResponse(metrics=metrics, next_page_token=token)

    async def GetMetricHistory(
        self, request: pb.GetMetricHistoryRequest, context: Any
    ) -> pb.GetMetricHistoryResponse:
        names.parse(_RUN, request.parent)
        size = paging.page_size(request.page_size or _HISTORY_POINTS, _HISTORY_POINTS)
        query = ("history", request.parent, request.metric)
        first = int(paging.decode(request.page_token, *query) or 0)
        await self._streams.settle(METRICS, request.parent)
        found = await self._store.history(request.parent, request.metric, first, size)
        if found is None:
            raise NotFound(
                "METRIC_NOT_FOUND",
                f"{request.parent} has no metric {request.metric[:100]!r}.",
                "See ListMetrics, or `stellwerk run metrics`.",
            )
        points, more = found
        return pb.GetMetricHistoryResponse(
            columns=points.columns(request.metric, first),
            next_page_token=paging.encode(first + len(points), *query) if more else "",
        )

    async def GetMetricHistories(
        self, request: pb.GetMetricHistoriesRequest, context: Any
    ) -> pb.GetMetricHistoriesResponse:
        return pb.GetMetricHistoriesResponse(series=await self._histories.get(request))

    async def ListRecords(self, request: pb.ListRecordsRequest, context: Any) -> pb.ListRecordsResponse:
        names.parse(_RUN, request.parent)
        await self._streams.settle(RECORDS, request.parent)
        records, token = await self._records.page(
            request.parent, request.record, request.page_size, request.page_token
        )
        return pb.ListRecordsResponse(records=records, next_page_token=token)

    async def WatchMetrics(
        self, request: pb.WatchMetricsRequest, context: Any
    ) -> AsyncIterator[pb.WatchMetricsResponse]:
        names.parse(_RUN, request.parent)
        query = ("watch", request.parent)
        position = Position(*(paging.decode(request.cursor, *query) or ()))
        with self._changes.watch(request.parent) as changed:
            while True:
                changed.clear()
                # Asked first: what is stored when the run is found complete is all there will be.
                is_complete = await self._streams.has_all(METRICS, request.parent)
                version = await self._ingest.version(METRICS, request.parent)
                async for columns, reached in self._store.after(request.parent, position, version):
                    position = reached
                    cursor = paging.encode([position.since, position.until, position.key], *query)
                    yield pb.WatchMetricsResponse(columns=columns, cursor=cursor)
                if is_complete:
                    return
                await changed.wait()
