"""CompareRuns: reads all that is compared, each thing once."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from stellwerk_platform import names
from stellwerk_platform.errors import InvalidArgument
from stellwerk_platform.mongo import missing
from stellwerk_protos.registry.v1.environments_pb2 import EnvironmentVersion
from stellwerk_protos.runs.v1 import runs_pb2 as pb
from stellwerk_protos.runs.v1.snapshots_pb2 import Snapshot
from stellwerk_runs.compare.domain import ROWS, Side, compare
from stellwerk_runs.runs.store import RunStore
from stellwerk_runs.snapshots.store import SnapshotStore
from stellwerk_runs.upstream import Registry

T = TypeVar("T")
_RUNS = 100
_AT_ONCE = 8
# A digest is asked for by name of the version; so many are for one comparison.
_DIGESTS = 100


class Compare:
    """The one method, for `RunService`."""

    def __init__(self, runs: RunStore, snapshots: SnapshotStore, registry: Registry) -> None:
        self._runs = runs
        self._snapshots = snapshots
        self._registry = registry

    async def compare(self, request: pb.CompareRunsRequest) -> pb.CompareRunsResponse:
        """Answers a request whose names are in its workspace; raises `NotFound` for a run that is gone."""
        if not 2 <= len(request.runs) <= _RUNS:
            raise InvalidArgument(
                "INVALID_RUN_COUNT", f"{len(request.runs)} runs to compare.", f"Name 2 to {_RUNS} runs."
            )
        found = {run.name: run for run in await self._runs.runs.all({"_id": {"$in": list(request.runs)}})}
        for name in request.runs:
            if name not in found:
                raise missing(pb.Run, name)
        runs = [found[name] for name in request.runs]
        rows = compare(await self._sides(runs), request.include_equal)
        return pb.CompareRunsResponse(runs=runs, rows=rows)

    async def _sides(self, runs: list[pb.Run]) -> list[Side]:
        workspace = names.workspace_of(runs[0].name)
        last = await self._runs.search.all_last(workspace, {run.name for run in runs}, ROWS)
        snapshots = await self._each((run.workload.snapshot for run in runs), self._snapshot)
        environments = await self._each((run.workload.environment for run in runs), self._environment)
        inputs = sorted({item.resource for run in runs for item in run.workload.inputs})[:_DIGESTS]
        digests = await self._each(inputs, self._registry.digest)
        return [
            Side(
                run,
                last.get(run.name, {}),
                snapshots.get(run.workload.snapshot),
                environments.get(run.workload.environment),
                digests,
            )
            for run in runs
        ]

    async def _each(self, wanted: Iterable[str], read: Callable[[str], Awaitable[T]]) -> dict[str, T]:
        """What is read by name, each once, some at a time."""
        keys = sorted({name for name in wanted if name})
        room = asyncio.Semaphore(_AT_ONCE)

        async def one(name: str) -> T:
            async with room:
                return await read(name)

        return dict(zip(keys, await asyncio.gather(*map(one, keys)), strict=True))

    async def _snapshot(self, name: str) -> Snapshot | None:
        return await self._snapshots.find(name)

    async def _environment(self, name: str) -> EnvironmentVersion | None:
        return await self._registry.environment_version(name)
