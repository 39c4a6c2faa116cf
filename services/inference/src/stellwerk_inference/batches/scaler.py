"""Replicas of batch deployments: as many as the open mini-batches keep busy, and in the end the least.

Without memory: what is decided follows from jobs and deployments in the store, so that
several processes come to the same, and the first one counts.
"""

import asyncio
import logging
from datetime import UTC, datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp

from stellwerk_inference.autoscale.domain import Settings
from stellwerk_inference.batches import domain
from stellwerk_inference.batches.store import BatchStore
from stellwerk_inference.changes import Changes
from stellwerk_inference.lifecycle import Lifecycle
from stellwerk_inference.states import SUCCEEDED
from stellwerk_inference.store import Store
from stellwerk_platform.documents import now
from stellwerk_platform.errors import NotFound
from stellwerk_platform.journal import Fact
from stellwerk_protos.inference.v1 import endpoints_pb2 as pb

log = logging.getLogger(__name__)
_PAUSE_SECONDS = 0.2


def wanted(deployment: pb.Deployment, open_pieces: int, idle_since: datetime, moment: datetime) -> int:
    """How many replicas there are to be, for so many open mini-batches.

    While one is open none is taken away: nobody knows which of them work.
    """
    settings, count = Settings.of(deployment.scale_settings), deployment.replica_count
    if open_pieces:
        busy = max(-(-open_pieces // at_once(deployment)), 1)
        return max(settings.clamp(busy), min(count, settings.max_replicas))
    if moment - idle_since >= timedelta(seconds=settings.down_delay_seconds):
        return settings.min_replicas
    return settings.clamp(count)


def at_once(deployment: pb.Deployment) -> int:
    """How many mini-batches a replica works on at a time."""
    return max(deployment.workload.batch_settings.max_concurrency_per_replica, 1)


def enough(deployment: pb.Deployment) -> int:
    """How many mini-batches keep all replicas busy that there may be."""
    return deployment.scale_settings.max_replicas * at_once(deployment)


def apply(
    deployment: pb.Deployment, before: int, after: int, open_pieces: int, moment: Timestamp
) -> Fact | None:
    """Changes how many replicas are wanted; None when the deployment is not any more as it was decided on."""
    if deployment.state != SUCCEEDED or deployment.replica_count != before or before == after:
        return None
    deployment.replica_count = after
    deployment.last_scaling.CopyFrom(
        pb.ScalingDecision(
            from_replicas=before,
            to_replicas=after,
            concurrency=open_pieces,
            ready_replicas=deployment.ready_replica_count,
            time=moment,
        )
    )
    change = f"{before} to {after} replicas"
    if after > before:
        least = "at least " if open_pieces >= enough(deployment) else ""
        return Fact("scaled", "BATCH_JOB_WAITS", f"{change}: {least}{open_pieces:,} mini-batches are open.")
    return Fact("scaled", "BATCH_JOBS_DONE", f"{change}: no job has been open for long enough.")


class BatchScaler:
    """Looks after every change, and every two seconds."""

    def __init__(self, store: Store, batches: BatchStore, lifecycle: Lifecycle, changes: Changes) -> None:
        self._store = store
        self._batches = batches
        self._lifecycle = lifecycle
        self._changes = changes

    async def run(self) -> None:
        """Decides for ever."""
        with self._changes.watch() as waiter:
            while True:
                await waiter.next()
                try:
                    for deployment in await self._store.batch_deployments():
                        await self._look(deployment)
                except Exception:
                    log.warning("Batch deployments are looked at again", exc_info=True)
                # Its own changes wake it as well.
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _look(self, deployment: pb.Deployment) -> None:
        jobs = await self._batches.open_jobs(deployment=deployment.name)
        names = [job.name for job in jobs if job.state != domain.CANCEL_REQUESTED]
        # More than keep all replicas busy make no difference.
        pieces = await self._batches.mini_batches.count_open(names, enough(deployment)) if names else 0
        before = deployment.replica_count
        if jobs and not pieces:
            # Its results are being registered, or its last replicas let go: it is over in a moment.
            return
        ended = await self._batches.last_end(deployment.name) if not jobs else None
        idle_since = max(deployment.update_time.ToDatetime(UTC), ended or datetime.min.replace(tzinfo=UTC))
        after = wanted(deployment, pieces, idle_since, datetime.now(UTC))
        if after == before:
            return
        try:
            await self._lifecycle.scale(deployment.name, lambda d: apply(d, before, after, pieces, now()))
        except NotFound:
            return  # a database that is no more
