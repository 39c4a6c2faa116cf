"""SearchRuns: parse, find, reply."""

import asyncio

from stellwerk_platform import names
from stellwerk_platform.errors import InvalidArgument
from stellwerk_protos.runs.v1 import runs_pb2 as pb
from stellwerk_runs.runs.store import RunStore
from stellwerk_runs.search.query import compile_query

_METRICS = 100


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
        page, token = await self._search.find(query, request.page_size, request.page_token, *identity)
        found, last = await asyncio.gather(
            self._runs.runs.all({"_id": {"$in": page}}),
            self._search.last(workspace, page, request.metrics),
        )
        runs = {run.name: run for run in found}
        return pb.SearchRunsResponse(
            runs=[pb.FoundRun(run=runs[name], metrics=last.get(name)) for name in page if name in runs],
            next_page_token=token,
        )
