"""LogService: what is stored, and what is being stored."""

import time
from collections.abc import AsyncIterator
from typing import Any

from stellwerk_platform import names, paging
from stellwerk_platform.content import check_path
from stellwerk_platform.errors import InvalidArgument, NotFound
from stellwerk_protos.runs.v1 import logs_pb2 as pb
from stellwerk_protos.runs.v1 import logs_pb2_grpc
from stellwerk_runs.changes import Changes
from stellwerk_runs.ingest.domain import LOGS
from stellwerk_runs.ingest.streams import Streams
from stellwerk_runs.logs.replicas import check_owner, is_replica
from stellwerk_runs.logs.search import LineSearch
from stellwerk_runs.logs.store import LogStore

_STANDARD_LOG = "user_logs/std_log.txt"
_MAXIMUM_OFFSET = 10**15
_QUERY_LENGTH = 1_000
# After this the answer has what was found so far, and a token.
_SEARCH_SECONDS = 2.0


class LogService(logs_pb2_grpc.LogServiceServicer):
    """The servicer."""

    def __init__(self, store: LogStore, streams: Streams, changes: Changes) -> None:
        self._store = store
        self._streams = streams
        self._changes = changes

    async def ListLogs(self, request: pb.ListLogsRequest, context: Any) -> pb.ListLogsResponse:
        check_owner(request.parent)
        await self._streams.settle(LOGS, request.parent)
        return pb.ListLogsResponse(logs=await self._store.list(request.parent))

    async def ReadLog(self, request: pb.ReadLogRequest, context: Any) -> AsyncIterator[pb.ReadLogResponse]:
        check_owner(request.parent)
        log = check_path(request.log or _STANDARD_LOG)
        _check_position(request)
        await self._streams.settle(LOGS, request.parent)
        size = await self._store.size(request.parent, log)
        if size is None and not request.follow and request.log:
            raise _no_log(request.parent, log)
        offset = max((size or 0) - request.tail_bytes, 0) if request.tail_bytes else request.offset
        begin = await self._begin(request.parent, log)
        is_cut = bool((request.tail_bytes and offset) or begin > offset)
        offset = max(offset, begin)
        with self._changes.watch(request.parent) as changed:
            while True:
                changed.clear()
                # Asked first: what is stored when the run is found complete is all there will be.
                is_last = not request.follow or await self._streams.has_all(LOGS, request.parent)
                async for chunk in self._store.read(request.parent, log, offset):
                    if is_cut:
                        offset, is_cut = chunk.character_from(offset), False
                    for text in chunk.after(offset):
                        yield pb.ReadLogResponse(offset=text.offset, data=text.data, time=text.marks[0][1])
                        offset = text.offset + len(text.data)
                if is_last:
                    return
                await changed.wait()

    async def SearchLog(self, request: pb.SearchLogRequest, context: Any) -> pb.SearchLogResponse:
        check_owner(request.parent)
        log = check_path(request.log or _STANDARD_LOG)
        size = paging.page_size(request.page_size)
        if not 0 < len(request.query) <= _QUERY_LENGTH:
            raise InvalidArgument(
                "INVALID_QUERY",
                f"The text to find has {len(request.query):,} characters.",
                f"Use 1 to {_QUERY_LENGTH:,}.",
            )
        query = ("search", request.parent, log, request.query)
        position = max(
            int(paging.decode(request.page_token, *query) or 0), await self._begin(request.parent, log)
        )
        await self._streams.settle(LOGS, request.parent)
        if request.log and await self._store.size(request.parent, log) is None:
            raise _no_log(request.parent, log)
        lines, rest = await self._search(request, log, position, size)
        return pb.SearchLogResponse(
            lines=lines, next_page_token="" if rest is None else paging.encode(rest, *query)
        )

    async def _begin(self, owner: str, log: str) -> int:
        """Where the text begins that is still there."""
        return await self._store.begin(owner, log) if is_replica(owner) else 0

    async def _search(
        self, request: pb.SearchLogRequest, log: str, position: int, size: int
    ) -> tuple[list[pb.LogLine], int | None]:
        """Up to `size` lines, and where to go on: after a full page, or enough work for one call."""
        search, lines = LineSearch(request.query, position), list[pb.LogLine]()
        deadline = time.monotonic() + _SEARCH_SECONDS
        async for chunk in self._store.read(request.parent, log, position):
            for line in search.feed(chunk):
                lines.append(line)
                if len(lines) == size:
                    return lines, search.position
            if time.monotonic() > deadline:
                return lines, search.position
        return [*lines, *search.finish()], None


def _check_position(request: pb.ReadLogRequest) -> None:
    for position in (request.offset, request.tail_bytes):
        if not 0 <= position < _MAXIMUM_OFFSET:
            raise InvalidArgument(
                "INVALID_POSITION", f"Position {position} is out of range.", "Count from 0."
            )
    if request.offset and request.tail_bytes:
        raise InvalidArgument(
            "INVALID_POSITION", "Both an offset and a number of last bytes.", "Send one of the two."
        )


def _no_log(run: str, log: str) -> NotFound:
    cure = f"See `stellwerk run logs {names.id_of(run)} --list`."
    if is_replica(run):
        cure = "Leave the name of the log out."
    return NotFound("LOG_NOT_FOUND", f"{run} has no log {log!r}.", cure)
