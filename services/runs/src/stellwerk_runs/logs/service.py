"""LogService: what is stored, and what is being stored."""

from collections.abc import AsyncIterator
from typing import Any

from stellwerk_platform import names
from stellwerk_platform.content import check_path
from stellwerk_platform.errors import InvalidArgument, NotFound
from stellwerk_protos.runs.v1 import logs_pb2 as pb
from stellwerk_protos.runs.v1 import logs_pb2_grpc
from stellwerk_runs.changes import Changes
from stellwerk_runs.ingest.domain import LOGS
from stellwerk_runs.ingest.streams import Streams
from stellwerk_runs.logs.store import LogStore

_RUN = "workspaces/*/runs/*"
_STANDARD_LOG = "user_logs/std_log.txt"
_MAXIMUM_OFFSET = 10**15


class LogService(logs_pb2_grpc.LogServiceServicer):
    """The servicer."""

    def __init__(self, store: LogStore, streams: Streams, changes: Changes) -> None:
        self._store = store
        self._streams = streams
        self._changes = changes

    async def ListLogs(self, request: pb.ListLogsRequest, context: Any) -> pb.ListLogsResponse:
        names.parse(_RUN, request.parent)
        await self._streams.settle(LOGS, request.parent)
        return pb.ListLogsResponse(logs=await self._store.list(request.parent))

    async def ReadLog(self, request: pb.ReadLogRequest, context: Any) -> AsyncIterator[pb.ReadLogResponse]:
        names.parse(_RUN, request.parent)
        log = check_path(request.log or _STANDARD_LOG)
        offset = request.offset
        if not 0 <= offset < _MAXIMUM_OFFSET:
            raise InvalidArgument("INVALID_POSITION", f"Offset {offset} is out of range.", "Count from 0.")
        await self._streams.settle(LOGS, request.parent)
        if not request.follow and request.log and not await self._store.exists(request.parent, log):
            raise NotFound(
                "LOG_NOT_FOUND",
                f"{request.parent} has no log {log!r}.",
                f"See `stellwerk run logs {names.id_of(request.parent)} --list`.",
            )
        with self._changes.watch(request.parent) as changed:
            while True:
                changed.clear()
                # Asked first: what is stored when the run is found complete is all there will be.
                is_last = not request.follow or await self._streams.is_complete(LOGS, request.parent)
                async for text in self._store.read(request.parent, log, offset):
                    yield pb.ReadLogResponse(offset=text.offset, data=text.data)
                    offset = text.offset + len(text.data)
                if is_last:
                    return
                await changed.wait()
