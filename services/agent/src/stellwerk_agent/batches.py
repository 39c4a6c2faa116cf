"""Keeps a replica of a batch deployment busy: leases work, renews the leases, tells what came of it.

One task asks for work, and says what is held, so that `inference` can give what an answer that was lost, or
an agent that was killed, had leased to this replica again at once.
"""

import asyncio
import logging
import time
import uuid
from pathlib import Path

from google.protobuf.timestamp_pb2 import Timestamp

from stellwerk_agent.calls import call
from stellwerk_agent.failure import reason_of
from stellwerk_agent.folder import discard
from stellwerk_agent.scoring import Dropped, Scoring, ScoringFailed
from stellwerk_platform import failpoints
from stellwerk_platform.errors import Aborted, NotFound, PlatformError
from stellwerk_protos.compute.v1 import workloads_pb2
from stellwerk_protos.inference.v1 import batches_pb2 as pb
from stellwerk_protos.inference.v1 import batches_pb2_grpc

log = logging.getLogger(__name__)
FOLDER = "batch"
# Of the time of a lease a third, within these, whatever the clocks say.
_SHORTEST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 1, 10
# What is done sooner is not renewed at all.
_PAUSE_BEFORE_RENEWAL_SECONDS = 1.0
# An answer without work comes after 20 s; a service that answers at once is not asked all the time.
_PAUSE_SECONDS = 1.0
_REFUSED_SECONDS = 5.0
# What this node is to blame for would fail again here: others get the chance to do it.
_FIRST_REST_SECONDS, _LONGEST_REST_SECONDS = 2.0, 60.0
# What is done when the scoring server has ended may still be delivered.
_LAST_SECONDS = 30.0
_NODE_IS_TO_BLAME = ("NODE_DISK_FULL", "RESULTS_NOT_WRITTEN")


class Batches:
    """The work of one replica, below `folder`."""

    def __init__(
        self,
        replica: str,
        settings: workloads_pb2.BatchSettings,
        folder: Path,
        service: "batches_pb2_grpc.BatchServiceAsyncStub",
        scoring: Scoring,
    ) -> None:
        self._replica = replica
        self._folder = folder
        self._service = service
        self._scoring = scoring
        self._slots = asyncio.Semaphore(concurrency(settings))
        self._held: dict[str, asyncio.Task[None]] = {}
        self._rest_seconds = 0.0

    async def run(self) -> None:
        """Leases and works until cancelled; what was begun then goes on until `finish` or `drop`."""
        await asyncio.to_thread(discard, self._folder)
        while True:
            await self._slots.acquire()
            try:
                await asyncio.sleep(self._rest_seconds)
                lease = await self._lease()
            except BaseException:
                self._slots.release()
                raise
            self._begin(lease)

    async def finish(self) -> None:
        """Waits a moment for what is under way, then drops it."""
        if self._held:
            await asyncio.wait(self._held.values(), timeout=_LAST_SECONDS)
        await self.drop()

    async def drop(self) -> None:
        """Ends what is under way; its leases run out, or are taken up by the next agent."""
        tasks = list(self._held.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _lease(self) -> pb.MiniBatchLease:
        """The next piece of work, however long it takes to come."""
        loop = asyncio.get_running_loop()
        while True:
            begun, pause = loop.time(), _PAUSE_SECONDS
            request = pb.LeaseMiniBatchRequest(parent=self._replica, held_lease_ids=list(self._held))
            try:
                answer = await call(self._service.LeaseMiniBatch, request)
                if answer.HasField("lease") and answer.lease.lease_id not in self._held:
                    return answer.lease
            except Exception as error:
                # Whatever it is, a replica that asks no more would be idle for ever.
                is_known = isinstance(error, PlatformError)
                log.warning("%s gets no work: %r", self._replica, error, exc_info=not is_known)
                pause = _REFUSED_SECONDS
            await asyncio.sleep(max(0.0, begun + pause - loop.time()))

    def _begin(self, lease: pb.MiniBatchLease) -> None:
        failpoints.hit("batch.leased")
        task = asyncio.create_task(self._work(lease), name=lease.name)
        self._held[lease.lease_id] = task

        def done(ended: "asyncio.Task[None]") -> None:
            del self._held[lease.lease_id]
            self._slots.release()
            if not ended.cancelled() and (error := ended.exception()) is not None:
                log.error("%s: its lease runs out", lease.name, exc_info=error)

        task.add_done_callback(done)

    async def _work(self, lease: pb.MiniBatchLease) -> None:
        """Works as long as the lease holds, and tells what came of it."""
        renewing = asyncio.create_task(self._renew(lease))
        working = asyncio.create_task(self._outcome(lease))
        try:
            await asyncio.wait((working, renewing), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                await self._tell(working.result())
        except Dropped:
            log.info("%s is left to others: the scoring server has ended", lease.name)
        finally:
            for task in (renewing, working):
                task.cancel()
            await asyncio.gather(renewing, working, return_exceptions=True)

    async def _renew(self, lease: pb.MiniBatchLease) -> None:
        """Returns when the lease is lost; a call that waits hears at once of a job that is to stop."""
        request = pb.RenewMiniBatchRequest(name=lease.name, lease_id=lease.lease_id, replica=self._replica)
        request.wait_seconds = _wait_seconds(lease.expire_time)
        while True:
            await asyncio.sleep(_PAUSE_BEFORE_RENEWAL_SECONDS)
            try:
                await call(self._service.RenewMiniBatch, request)
            except PlatformError as error:
                log.info("%s is dropped: %s", lease.name, error)
                return

    async def _outcome(self, lease: pb.MiniBatchLease) -> pb.FinishMiniBatchRequest:
        """What to tell; raises nothing but `Dropped`."""
        finish = pb.FinishMiniBatchRequest(name=lease.name, lease_id=lease.lease_id, replica=self._replica)
        folder, work = uuid.uuid4().hex, self._scoring.merge if lease.merge_into else self._scoring.score
        try:
            await work(lease, folder, finish)
            self._rest_seconds = 0.0
        except Dropped:
            raise
        except Exception as error:
            self._note_failure(lease, error, finish)
        finally:
            await asyncio.to_thread(discard, self._folder / folder)
        failpoints.hit("batch.scored")
        return finish

    def _note_failure(
        self, lease: pb.MiniBatchLease, error: Exception, finish: pb.FinishMiniBatchRequest
    ) -> None:
        reason = reason_of(error)
        log.warning("%s failed: %s %s", lease.name, reason.code, reason.message)
        # Nothing of what was done counts.
        finish.ClearField("results")
        finish.ClearField("succeeded_file_count")
        finish.ClearField("row_count")
        if isinstance(error, ScoringFailed) and (not reason.cure or reason.code == "SCRIPT_ERROR"):
            reason.cure = f"The log of the replica says more: {self._log_command()}."
        finish.failure.CopyFrom(reason)
        if not isinstance(error, ScoringFailed) or reason.code in _NODE_IS_TO_BLAME:
            longer = max(_FIRST_REST_SECONDS, 2 * self._rest_seconds)
            self._rest_seconds = min(longer, _LONGEST_REST_SECONDS)

    def _log_command(self) -> str:
        endpoint, deployment, replica = self._replica.split("/")[3::2]
        return f"`stellwerk deployment logs {endpoint} {deployment} --replica {replica}`"

    async def _tell(self, finish: pb.FinishMiniBatchRequest) -> None:
        try:
            await call(self._service.FinishMiniBatch, finish)
        except (Aborted, NotFound) as error:
            log.info("%s was somebody else's: %s", finish.name, error)
        except PlatformError as error:
            if finish.HasField("failure"):
                raise
            # What is not taken as a success is one more failure, else it would be done again for ever.
            finish.ClearField("results")
            finish.failure.CopyFrom(reason_of(error))
            await self._tell(finish)


def _wait_seconds(expire_time: Timestamp) -> int:
    remaining = expire_time.ToMilliseconds() / 1000 - time.time()
    return round(min(max(remaining / 3, _SHORTEST_WAIT_SECONDS), _LONGEST_WAIT_SECONDS))


def concurrency(settings: workloads_pb2.BatchSettings) -> int:
    """How many mini-batches a replica works on at a time."""
    return settings.max_concurrency_per_replica or 1


def batch_variables(workload: workloads_pb2.Workload, folder: Path) -> dict[str, str]:
    """What the scoring server is told; empty for one that answers requests."""
    if not workload.HasField("batch_settings"):
        return {}
    return {
        "STELLWERK_SCORER_BATCH_FOLDER": str(folder / FOLDER),
        "STELLWERK_SCORER_WORKERS": str(concurrency(workload.batch_settings)),
    }
