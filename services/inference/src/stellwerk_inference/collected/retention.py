"""Removes collected data that is older than its endpoint keeps it, and then blobs that nothing uses any more.

Entries and the digests that they leave are written in one transaction; each later step can be repeated,
by this process or another one.
"""

import asyncio
import logging
from datetime import UTC, datetime, timedelta

from stellwerk_inference.collected import domain
from stellwerk_inference.collected.store import Chosen, CollectedStore
from stellwerk_inference.store import Store
from stellwerk_inference.upstream import Upstream
from stellwerk_platform import failpoints
from stellwerk_platform.errors import NotFound, as_platform_error
from stellwerk_platform.journal import Fact
from stellwerk_platform.mongo import Transaction
from stellwerk_protos.inference.v1 import collections_pb2 as pb

log = logging.getLogger(__name__)
_SWEEP_SECONDS = 600.0
_BATCHES = 10
_SOONEST = timedelta(seconds=1)


class Retention:
    """The sweep, and the removal itself."""

    def __init__(
        self, collected: CollectedStore, store: Store, upstream: Upstream, grace_seconds: float
    ) -> None:
        self._collected = collected
        self._store = store
        self._upstream = upstream
        self._grace = max(timedelta(seconds=grace_seconds), _SOONEST)
        self._awake = asyncio.Event()

    def wake(self) -> None:
        """Says that there is something to do."""
        self._awake.set()

    async def run(self) -> None:
        """Sweeps for ever: at the start, when woken, and from time to time."""
        while True:
            self._awake.clear()
            try:
                await self.sweep()
            except Exception as error:
                _log_later("all", error)
            try:
                async with asyncio.timeout(min(_SWEEP_SECONDS, self._grace.total_seconds())):
                    await self._awake.wait()
            except TimeoutError:
                pass

    async def sweep(self) -> None:
        """All that is due."""
        for endpoint in await self._store.endpoints_with_retention():
            last = domain.older(datetime.now(UTC) - timedelta(days=endpoint.data_retention_days))
            try:
                while (await self._delete(Chosen(endpoint.name, "", "", last), "TOO_OLD")).more:
                    pass
            except Exception as error:
                # One that cannot be changed now must not hold up the others.
                _log_later(endpoint.name, error)
        while True:
            workspace, digests = await self._collected.due_blobs()
            if not digests:
                return
            await self._release(workspace, digests)

    async def delete(self, chosen: Chosen, code: str) -> pb.DeleteCollectedDataResponse:
        """Removes up to 10,000 files, and lets their blobs go."""
        total = pb.DeleteCollectedDataResponse(more=True)
        for _ in range(_BATCHES):
            some = await self._delete(chosen, code)
            total.file_count += some.file_count
            total.event_count += some.event_count
            total.size_bytes += some.size_bytes
            total.more = some.more
            if not some.more:
                break
        self.wake()
        return total

    async def _delete(self, chosen: Chosen, code: str) -> pb.DeleteCollectedDataResponse:
        async def work(tx: Transaction) -> pb.DeleteCollectedDataResponse:
            some = await self._collected.delete_some_in(tx, chosen)
            if some.file_count:
                fact = Fact("data_deleted", code, _text(chosen, some))
                await self._store.endpoints.update_in(tx, chosen.endpoint, lambda _: fact)
            return some

        return await self._store.change(chosen.endpoint, work)

    async def _release(self, workspace: str, digests: list[str]) -> None:
        free = sorted(set(digests) - await self._collected.referenced(workspace, digests))
        try:
            later = await self._upstream.release_blobs(workspace, free) if free else ()
        except NotFound:
            later = ()  # the workspace is gone, and with it all of its blobs
        except Exception as error:
            # Others need not wait for what is wrong with these.
            _log_later(workspace, error)
            later = digests
        failpoints.hit("collected.released")
        again = datetime.now(UTC) + self._grace
        await self._collected.settle_blobs(workspace, digests, dict.fromkeys(later, again))


def _log_later(what: str, error: Exception) -> None:
    expected = as_platform_error(error) is not None
    log.warning("Collected data of %s is removed later: %s", what, error, exc_info=not expected)


def _text(chosen: Chosen, some: pb.DeleteCollectedDataResponse) -> str:
    of = [f"of {chosen.deployment}"] if chosen.deployment else []
    of += [f"of collection {chosen.collection}"] if chosen.collection else []
    moment = chosen.last + timedelta(hours=1)
    return (
        f"{some.file_count} files of collected data with {some.event_count} events ({some.size_bytes} bytes) "
        f"{' '.join([*of, f'until {moment:%Y-%m-%d %H:%M} UTC'])} were removed."
    )
