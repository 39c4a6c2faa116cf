"""Brings the last values of metrics into `run_search`, behind the writer.

The writer only marks the head of a run in the transaction that it writes anyway; so a
training that logs fast costs a search index one update a round and not one a batch, and
a service that is killed finds by the marks what is still to be brought.
"""

import asyncio
import logging
import time

from pymongo.errors import OperationFailure

from stellwerk_platform import failpoints
from stellwerk_runs.ingest.store import IngestStore
from stellwerk_runs.metrics.store import MetricStore
from stellwerk_runs.search.fields import METRICS
from stellwerk_runs.search.store import SearchStore

log = logging.getLogger(__name__)
ROUND_SECONDS = 0.5
# A run with very many metrics takes long; it waits so many times longer.
_REST = 20
_REMEMBERED = 10_000


class Projector:
    """Any number of replicas may work: a version that is older than what is there changes nothing."""

    def __init__(self, ingest: IngestStore, metrics: MetricStore, search: SearchStore) -> None:
        self._ingest = ingest
        self._metrics = metrics
        self._search = search
        self._resting: dict[str, float] = {}

    async def run(self) -> None:
        """For ever; trouble with the store is waited out."""
        while True:
            try:
                await self.round()
            except Exception as error:
                log.warning("Searches do not see new metrics for now: %s", error)
            await asyncio.sleep(ROUND_SECONDS)

    async def round(self) -> None:
        """Brings what has been written since the last round."""
        async for run, version in self._ingest.unprojected():
            begin = time.monotonic()
            if self._resting.get(run, 0.0) > begin:
                continue
            try:
                await self._bring(run, version)
            except OperationFailure as error:
                # One run that MongoDB refuses must not stop the others.
                log.error("Searches do not see the metrics of %s: %s", run, error)
            self._rest(run, time.monotonic() - begin)

    async def _bring(self, run: str, version: int) -> None:
        last = await self._metrics.last(run, METRICS)
        await self._search.put_metrics(run, last, version)
        failpoints.hit("projector.written")
        await self._ingest.projected(run, version)

    def _rest(self, run: str, cost_seconds: float) -> None:
        if len(self._resting) >= _REMEMBERED:
            self._resting.clear()
        self._resting[run] = time.monotonic() + cost_seconds * _REST
