"""Asks scoring servers that have started whether they are ready, and then to score the sample request.

What has to be asked is read from the store, so that a process that starts anew, or a
second one, goes on where another stopped; an answer that comes twice changes nothing.
"""

import asyncio
import logging
import ssl
from datetime import UTC, datetime

import aiohttp

from stellwerk_inference.changes import Changes
from stellwerk_inference.deployments import rollouts
from stellwerk_inference.lifecycle import Lifecycle
from stellwerk_inference.metrics import Starts
from stellwerk_inference.replicas import domain
from stellwerk_inference.samples import NotNow, Result, Samples
from stellwerk_inference.states import CREATING
from stellwerk_inference.store import Store
from stellwerk_platform import failpoints, replica_tls
from stellwerk_platform.journal import Fact
from stellwerk_protos.inference.v1 import endpoints_pb2 as pb

log = logging.getLogger(__name__)
_PATH = "/v2/health/ready"
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.05, 1.0
_ANSWER_SECONDS = 2.0


class Prober:
    """One task for each replica that starts."""

    def __init__(
        self,
        store: Store,
        lifecycle: Lifecycle,
        changes: Changes,
        session: aiohttp.ClientSession,
        samples: Samples,
        starts: Starts,
        ready_seconds: float,
    ) -> None:
        self._store = store
        self._lifecycle = lifecycle
        self._changes = changes
        self._session = session
        self._samples = samples
        self._starts = starts
        self._ready_seconds = ready_seconds
        self._tasks: dict[tuple[str, int], asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Probes for ever."""
        try:
            with self._changes.watch() as waiter:
                while True:
                    await waiter.next()
                    try:
                        self._start(await self._store.starting_replicas())
                    except Exception:
                        log.warning("Cannot read which replicas start", exc_info=True)
        finally:
            for task in self._tasks.values():
                task.cancel()

    def _start(self, replicas: list[pb.Replica]) -> None:
        for replica in replicas:
            key = (replica.name, replica.allocation_revision)
            if key not in self._tasks:
                task = asyncio.create_task(self._probe(replica))
                self._tasks[key] = task
                task.add_done_callback(lambda _, key=key: self._tasks.pop(key, None))  # type: ignore[misc]

    async def _probe(self, replica: pb.Replica) -> None:
        """Asks until the answer is yes, time is up, or the replica has moved on; errors are asked again."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                if await self._is_ready(replica):
                    return await self._score(replica)
            except (NotNow, aiohttp.ClientError, TimeoutError) as error:
                log.info("%s does not answer its sample request yet: %s", replica.name, error)
            except Exception:
                log.warning("The probe of %s is tried again", replica.name, exc_info=True)
            try:
                current = await self._store.replicas.get(replica.name)
                if current.state != CREATING or current.allocation_revision != replica.allocation_revision:
                    return None
                since = datetime.now(UTC) - replica.update_time.ToDatetime(UTC)
                if since.total_seconds() > self._ready_seconds:
                    return await self._lifecycle.move_replica(
                        replica.name,
                        lambda r: domain.give_up(r, replica.allocation_revision, self._ready_seconds),
                    )
            except Exception:
                log.warning("The probe of %s is tried again", replica.name, exc_info=True)
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE_SECONDS)

    async def _score(self, replica: pb.Replica) -> None:
        """It is ready once it has answered the sample request of its rollout."""
        deployment = await self._store.deployments.get(domain.deployment_of(replica.name))
        rollout = rollouts.find(deployment, replica.rollout)
        result = Result()
        # A batch deployment answers no requests: it is ready when init() has run.
        if rollout is not None and not rollout.workload.HasField("batch_settings"):
            result = await self._samples.score(replica, rollout)
        failpoints.hit("inference.sample_scored")

        fact: Fact | None = None

        def judge(current: pb.Replica) -> Fact | None:
            nonlocal fact
            if result.failure is not None:
                return domain.refuse(current, replica.allocation_revision, result.failure)
            fact = domain.answered(current, replica.allocation_revision, result.note)
            return fact

        await self._lifecycle.move_replica(replica.name, judge)
        if fact is not None:
            self._starts.ready(replica)

    async def _is_ready(self, replica: pb.Replica) -> bool:
        try:
            timeout = aiohttp.ClientTimeout(total=_ANSWER_SECONDS)
            url = f"{replica_tls.url_of(replica.http_address)}{_PATH}"
            trust = replica_tls.context_of(replica.certificate)
            async with self._session.get(url, timeout=timeout, ssl=trust) as answer:
                return answer.status == 200
        except (aiohttp.ClientSSLError, ssl.SSLError) as error:
            log.warning("%s does not show the certificate of its node: %s", replica.name, error)
            return False
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return False
