"""RetentionService: which runs, what they take, and their removal."""

import asyncio
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from stellwerk_platform import names
from stellwerk_platform.errors import AlreadyExists, FailedPrecondition, InvalidArgument, as_platform_error
from stellwerk_platform.journal import Fact
from stellwerk_protos.runs.v1 import retention_pb2 as pb
from stellwerk_protos.runs.v1 import retention_pb2_grpc
from stellwerk_runs.retention import domain
from stellwerk_runs.retention.holds import Holds
from stellwerk_runs.retention.references import Leaving, References
from stellwerk_runs.retention.remover import Remover
from stellwerk_runs.retention.store import RemovalStore, RuleStore, Size
from stellwerk_runs.runs.store import RunStore
from stellwerk_runs.upstream import Registry

log = logging.getLogger(__name__)
_EXPERIMENT = "workspaces/*/experiments/*"
_NAMED = 1_000
# At a time; where rules let more go, the next call goes on.
_RUNS = 10_000
_CONCURRENT = 8
_BLOBS = 1_000


class RetentionService(retention_pb2_grpc.RetentionServiceServicer):
    """The servicer."""

    def __init__(
        self,
        rules: RuleStore,
        removals: RemovalStore,
        references: References,
        remover: Remover,
        runs: RunStore,
        holds: Holds,
        registry: Registry,
    ) -> None:
        self._rules = rules
        self._removals = removals
        self._references = references
        self._remover = remover
        self._runs = runs
        self._holds = holds
        self._registry = registry

    async def SetRetentionRule(self, request: pb.SetRetentionRuleRequest, context: Any) -> pb.RetentionRule:
        names.parse(_EXPERIMENT, request.parent)
        domain.check_rule(request.rule)
        await self._runs.experiments.get(request.parent)
        name = f"{request.parent}/retentionRule"
        text = (
            f"keep_days {request.rule.keep_days}, keep_last {request.rule.keep_last}, "
            f"archived_only {request.rule.archived_only}"
        )
        fact = Fact("set", "REQUESTED", text)

        def change(rule: pb.RetentionRule) -> Fact:
            rule.keep_days, rule.keep_last = request.rule.keep_days, request.rule.keep_last
            rule.archived_only = request.rule.archived_only
            return fact

        if await self._rules.find(name) is None:
            rule = pb.RetentionRule(name=name)
            change(rule)
            try:
                return await self._rules.create(rule, fact)
            except AlreadyExists:
                pass
        return await self._rules.update(name, change)

    async def GetRetentionRule(self, request: pb.GetRetentionRuleRequest, context: Any) -> pb.RetentionRule:
        names.parse(f"{_EXPERIMENT}/retentionRule", request.name)
        if (rule := await self._rules.find(request.name)) is not None:
            return rule
        await self._runs.experiments.get(request.name.removesuffix("/retentionRule"))
        return pb.RetentionRule(name=request.name)

    async def RemoveRuns(self, request: pb.RemoveRunsRequest, context: Any) -> pb.RemovalReport:
        (workspace,) = names.parse("workspaces/*", request.parent)
        await self._registry.check_workspace(request.parent)
        if request.runs:
            runs = await self._named(workspace, request.runs)
        else:
            runs = await self._by_rules(request.parent, request.experiment)
        sizes = await self._sizes(runs)
        report = await self._count(request.parent, runs, sizes)
        report.validate_only = request.validate_only
        if not request.validate_only:
            # Children before their parents.
            for run in reversed(runs):
                await self._removals.mark(run, sizes[run])
                self._runs.forget(run)
            await self._finish()
        return report

    async def ListReferencedBlobs(
        self, request: pb.ListReferencedBlobsRequest, context: Any
    ) -> pb.ListReferencedBlobsResponse:
        names.parse("workspaces/*", request.parent)
        if len(request.sha256) > _BLOBS:
            raise InvalidArgument(
                "TOO_MANY_BLOBS", f"{len(request.sha256)} blobs.", f"Ask for up to {_BLOBS} at a time."
            )
        free = await self._references.unreferenced(request.parent, request.sha256, Leaving())
        return pb.ListReferencedBlobsResponse(sha256=sorted(set(request.sha256) - free))

    async def _finish(self) -> None:
        """Deletes what was marked. The rest, and what cannot be done now, the sweep does: blobs go when all
        who may refer to them can be asked, and nobody waits for that."""
        try:
            await self._remover.delete_marked()
        except Exception as error:
            _check_retryable(error)
            log.warning("The removal goes on later: %s", error)
        self._remover.wake()

    async def _sizes(self, runs: Sequence[str]) -> dict[str, Size]:
        slots = asyncio.Semaphore(_CONCURRENT)

        async def size(run: str) -> Size:
            async with slots:
                return await self._removals.size(run)

        return dict(zip(runs, await asyncio.gather(*(size(run) for run in runs)), strict=True))

    async def _named(self, workspace: str, asked: Sequence[str]) -> list[str]:
        """The runs and all their descendants, parents first; raises for one that may not go."""
        if len(asked) > _NAMED:
            raise InvalidArgument("TOO_MANY_RUNS", f"{len(asked):,} runs.", f"Name up to {_NAMED:,}.")
        for run in asked:
            if names.parse("workspaces/*/runs/*", run)[0] != workspace:
                raise InvalidArgument(
                    "WORKSPACE_MISMATCH", f"{run} is not in this workspace.", "Ask one workspace at a time."
                )
        found = await self._trees([run for run in asked if await self._removals.is_over(run) is not None])
        for run in found:
            if not await self._removals.is_over(run):
                raise domain.not_over(run)
        if holders := await self._holds.of(found):
            raise domain.held(*next(iter(holders.items())))
        return found

    async def _trees(self, roots: Sequence[str]) -> list[str]:
        found = list(dict.fromkeys(roots))
        known = set(found)
        for run in found:
            async for child in self._removals.children(run):
                if child not in known:
                    known.add(child)
                    found.append(child)
            if len(found) > _RUNS:
                raise FailedPrecondition(
                    "TOO_MANY_RUNS", f"More than {_RUNS:,} runs with descendants.", "Name fewer."
                )
        # A child that was named itself may stand before its parent.
        return await self._parents_first(found)

    async def _parents_first(self, found: Sequence[str]) -> list[str]:
        parents = {child: run for run in found async for child in self._removals.children(run)}
        depth: dict[str, int] = {}
        for run in found:
            at, steps = run, 0
            while at in parents:
                at, steps = parents[at], steps + 1
            depth[run] = steps
        return sorted(found, key=lambda run: depth[run])

    async def _by_rules(self, workspace: str, experiment: str) -> list[str]:
        """What the rules let go, oldest first, with whole trees only."""
        if experiment:
            names.parse(_EXPERIMENT, experiment)
            rules = [await self._rules.get(f"{experiment}/retentionRule")]
        else:
            rules = await self._rules.all({"workspace": names.id_of(workspace)})
        moment = datetime.now(UTC)
        free: list[str] = []
        for rule in rules:
            ended = await self._removals.ended(rule.name.removesuffix("/retentionRule"))
            free += domain.let_go(rule, ended, moment)
        held = await self._holds.of(free)
        going = {run for run in free if run not in held}
        chosen: list[str] = []
        for run in free:
            tree = await self._trees([run]) if run in going else []
            if len(chosen) + len(tree) > _RUNS:
                break
            if tree and going.issuperset(tree):
                chosen += [one for one in tree if one not in chosen]
        return await self._parents_first(chosen)

    async def _count(self, workspace: str, runs: list[str], sizes: dict[str, Size]) -> pb.RemovalReport:
        snapshots = await self._removals.snapshots_of(runs)
        kept = await self._holds.of(snapshots)
        alone = [s for s in snapshots if s not in kept and not await self._removals.uses(s, runs)]
        leaving = Leaving(runs, alone)
        blobs = await self._references.unreferenced(
            workspace, await self._references.blobs_of(leaving), leaving
        )
        report = pb.RemovalReport(
            runs=runs[:_NAMED],
            run_count=len(runs),
            point_count=sum(size.points for size in sizes.values()),
            log_bytes=sum(size.log_bytes for size in sizes.values()),
        )
        try:
            answer = await self._registry.release_blobs(workspace, sorted(blobs), validate_only=True)
        except Exception as error:
            _check_retryable(error)
            log.warning("The blobs of a removal cannot be counted: %s", error)
            report.blobs_uncounted = True
        else:
            report.blob_count, report.blob_bytes = answer.blob_count, answer.size_bytes
        return report


def _check_retryable(error: Exception) -> None:
    """Raises what will not go by itself."""
    if (known := as_platform_error(error)) is None or not known.retryable:
        raise error
