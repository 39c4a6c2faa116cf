"""Several series in one answer: which ones, how many points, exact or shorter."""

import asyncio
from collections.abc import Sequence

from stellwerk_platform import names
from stellwerk_platform.errors import InvalidArgument, ResourceExhausted
from stellwerk_protos.runs.v1 import metrics_pb2 as pb
from stellwerk_runs.ingest.domain import METRICS
from stellwerk_runs.ingest.streams import Streams
from stellwerk_runs.metrics.domain import Points
from stellwerk_runs.metrics.sampling import BLOCK_POINTS, Shortener
from stellwerk_runs.metrics.store import MetricStore

_NAMES = 100
_SERIES = 10_000
# 12 MB of columns: an answer is a message of at most 16 MiB.
_SENT_POINTS = 500_000
_READ_POINTS = 20_000_000
_MAX_POINTS = (3, 10_000)
_DEFAULT_POINTS = 1_000
_CONCURRENT_SERIES = 4
# Below this, choosing points takes less time than another thread.
_THREAD_POINTS = 200_000


class Histories:
    """Answers GetMetricHistories."""

    def __init__(self, store: MetricStore, streams: Streams) -> None:
        self._store = store
        self._streams = streams

    async def get(self, request: pb.GetMetricHistoriesRequest) -> list[pb.Series]:
        """The series by run, in the order asked, and metric; raises `InvalidArgument` and `NotFound`."""
        runs = _check(request)
        await asyncio.gather(*(self._streams.settle(METRICS, run) for run in runs))
        found = await self._store.counts(runs, list(dict.fromkeys(request.metrics)), _SERIES + 1)
        size = 0 if request.sampling == pb.SAMPLING_EXACT else request.max_points or _DEFAULT_POINTS
        _check_size([count for _, _, count in found], size)
        slots = asyncio.Semaphore(_CONCURRENT_SERIES)

        async def one(run: str, metric: str, count: int) -> pb.Series:
            async with slots:
                points = await self._points(run, metric, count, size, request.sampling)
            return pb.Series(run=run, count=count, columns=points.columns(metric, 0))

        return await asyncio.gather(*(one(*series) for series in found))

    async def _points(self, run: str, metric: str, count: int, size: int, sampling: int) -> Points:
        if not size or count <= size:
            return await self._store.points(run, metric, 0, count)
        shortener = Shortener(count, size, sampling)
        for first in range(0, count, BLOCK_POINTS):
            block = await self._store.points(run, metric, first, min(first + BLOCK_POINTS, count))
            if len(block) < _THREAD_POINTS:
                shortener.feed(block)
            else:
                await asyncio.to_thread(shortener.feed, block)
        if count < _THREAD_POINTS:
            return shortener.result()
        return await asyncio.to_thread(shortener.result)


def _check(request: pb.GetMetricHistoriesRequest) -> list[str]:
    (workspace,) = names.parse("workspaces/*", request.parent)
    runs = list(dict.fromkeys(request.runs))
    if not 0 < len(runs) <= _NAMES or len(request.metrics) > _NAMES:
        raise InvalidArgument(
            "TOO_MANY_SERIES",
            f"{len(runs):,} runs and {len(request.metrics):,} metrics.",
            f"Name 1 to {_NAMES} runs, and up to {_NAMES} metrics.",
        )
    for run in runs:
        if names.parse("workspaces/*/runs/*", run)[0] != workspace:
            raise InvalidArgument(
                "WORKSPACE_MISMATCH", f"{run} is not in {request.parent}.", "Ask one workspace at a time."
            )
    if request.max_points and not _MAX_POINTS[0] <= request.max_points <= _MAX_POINTS[1]:
        raise InvalidArgument(
            "INVALID_MAX_POINTS",
            f"max_points is {request.max_points}.",
            f"Use {_MAX_POINTS[0]} to {_MAX_POINTS[1]:,}; 0 means {_DEFAULT_POINTS:,}.",
        )
    return runs


def _check_size(counts: Sequence[int], size: int) -> None:
    if len(counts) > _SERIES:
        raise ResourceExhausted("TOO_MANY_SERIES", f"More than {_SERIES:,} series.", "Name metrics.")
    sent = sum(min(count, size) if size else count for count in counts)
    if sent > _SENT_POINTS or sum(counts) > _READ_POINTS:
        raise ResourceExhausted(
            "TOO_MANY_POINTS",
            f"{len(counts):,} series with {sum(counts):,} points, of which {sent:,} would be sent.",
            f"Up to {_SENT_POINTS:,} are sent and {_READ_POINTS:,} read: ask for fewer series or a smaller "
            "max_points, or read single histories by page.",
        )
