"""SearchRuns: parse, find, reply."""

from collections.abc import Sequence

from stellwerk_platform import names, paging
from stellwerk_platform.errors import InvalidArgument
from stellwerk_protos.runs.v1 import runs_pb2 as pb
from stellwerk_runs.runs.store import RunStore
from stellwerk_runs.search.query import compile_query

_METRICS = 100
_READ_AT_ONCE = 100


class Search:
    """The one method, for `RunService`."""

    def __init__(self, runs: RunStore) -> None:
        self._runs = runs
        self._search = runs.search

    async def find(self, request: pb.SearchRunsRequest) -> pb.SearchRunsResponse:
        """Answers a request whose workspace exists."""
        (workspace,) = names.parse("workspaces/*", request.parent)
        if len(request.metrics) > _METRICS:
            raise InvalidArgument(
                "TOO_MANY_METRICS", f"{len(request.metrics)} metrics in one search.", f"Use up to {_METRICS}."
            )
        query = compile_query(workspace, request.filter, request.order_by, request.include_archived)
        identity = (workspace, request.filter, request.order_by, request.include_archived)
        runs: dict[str, pb.Run] = {}

        async def fitting(page: Sequence[str]) -> int:
            return await self._load(page, runs)

        page, token = await self._search.find(
            query, request.page_size, request.page_token, fitting, *identity
        )
        last = await self._search.last(workspace, page, request.metrics)
        return pb.SearchRunsResponse(
            runs=[pb.FoundRun(run=runs[name], metrics=last.get(name)) for name in page if name in runs],
            next_page_token=token,
        )

    async def _load(self, page: Sequence[str], runs: dict[str, pb.Run]) -> int:
        """Reads the runs of a page into `runs` until an answer would get too large; returns how many fit."""
        room = paging.Room(len(page))
        for start in range(0, len(page), _READ_AT_ONCE):
            some = page[start : start + _READ_AT_ONCE]
            found = {run.name: run for run in await self._runs.runs.all({"_id": {"$in": list(some)}})}
            runs |= found
            for number, name in enumerate(some, start):
                if name in found and not room.take(found[name].ByteSize()):
                    return number
        return len(page)
