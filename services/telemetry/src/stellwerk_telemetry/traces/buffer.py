"""Between OTLP and MongoDB: exporters get their answer at once, and the store gets batches.

What the buffer holds is lost when the process is killed: a span is worth less than
the time that an exporter would wait for it. Facts are in the journal, not here.
"""

import asyncio
import logging
from collections import deque

from pymongo.errors import PyMongoError

from stellwerk_platform.documents import Document
from stellwerk_telemetry.traces.store import Spans

log = logging.getLogger(__name__)
_LIMIT_BYTES = 64 * 1024 * 1024
_BATCH = 1_000
_RETRY_SECONDS = 1.0
_FLUSH_SECONDS = 2.0


class SpanBuffer:
    """Holds spans, up to a number of bytes, until they are stored."""

    def __init__(self, spans: Spans, limit_bytes: int = _LIMIT_BYTES) -> None:
        self._spans = spans
        self._limit_bytes = limit_bytes
        self._waiting: deque[tuple[list[Document], int]] = deque()
        self._bytes = 0
        self._filled = asyncio.Event()

    def add(self, documents: list[Document], size_bytes: int) -> bool:
        """Takes spans; False, and none is taken, when the store has fallen too far behind."""
        if self._bytes + size_bytes > self._limit_bytes:
            return False
        if documents:
            self._waiting.append((documents, size_bytes))
            self._bytes += size_bytes
            self._filled.set()
        return True

    async def run(self) -> None:
        """Stores what comes, for ever; waits for MongoDB when it does not answer."""
        while True:
            await self._filled.wait()
            self._filled.clear()
            while self._waiting:
                try:
                    await self._store_batch()
                except PyMongoError as error:
                    log.warning("Spans wait for MongoDB: %s", str(error)[:300])
                    await asyncio.sleep(_RETRY_SECONDS)

    async def flush(self) -> None:
        """Stores what is left, for at most two seconds."""
        try:
            async with asyncio.timeout(_FLUSH_SECONDS):
                while self._waiting:
                    await self._store_batch()
        except (PyMongoError, TimeoutError):
            log.warning("The last spans are lost: MongoDB did not answer in time.")

    async def _store_batch(self) -> None:
        """Stores the oldest spans, and forgets them only then."""
        batch: list[Document] = []
        taken = size_bytes = 0
        for documents, size in self._waiting:
            if batch and len(batch) + len(documents) > _BATCH:
                break
            batch += documents
            taken += 1
            size_bytes += size
        await self._spans.insert(batch)
        for _ in range(taken):
            self._waiting.popleft()
        self._bytes -= size_bytes
