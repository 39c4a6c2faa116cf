"""Asks scoring servers that have started whether they are ready.

What has to be asked is read from the store, so that a process that starts anew, or a
second one, goes on where another stopped; an answer that comes twice changes nothing.
"""

import asyncio
import logging
from datetime import UTC, datetime

import aiohttp

from stellwerk_inference.changes import Changes
from stellwerk_inference.lifecycle import Lifecycle
from stellwerk_inference.replicas import domain
from stellwerk_inference.states import CREATING
from stellwerk_inference.store import Store
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
        ready_seconds: float,
    ) -> None:
        self._store = store
        self._lifecycle = lifecycle
        self._changes = changes
        self._session = session
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
                if await self._is_ready(replica.http_address):
                    return await self._lifecycle.move_replica(
                        replica.name, lambda r: domain.answered(r, replica.allocation_revision)
                    )
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

    async def _is_ready(self, address: str) -> bool:
        try:
            timeout = aiohttp.ClientTimeout(total=_ANSWER_SECONDS)
            # The first address is host:port; a unix socket may follow.
            url = f"http://{address.partition(',')[0]}{_PATH}"
            async with self._session.get(url, timeout=timeout) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return False
