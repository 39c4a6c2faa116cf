"""What a service keeps of a workspace: counting it, and removing it for good.

Documents belong to a workspace by their `_id`, which begins with its name in nearly
every collection, so that a collection that nobody thought of here goes as well. What is
kept otherwise, a service says with `Kept`.
"""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stellwerk_platform import failpoints, names
from stellwerk_platform.documents import Document
from stellwerk_platform.grpc_server import Registration
from stellwerk_platform.mongo import Database
from stellwerk_platform.workspaces import Workspaces
from stellwerk_protos.platform.v1 import platform_pb2 as pb
from stellwerk_protos.platform.v1 import platform_pb2_grpc

OTHER = "other documents"
_OUTBOX = "journal_outbox"
_LIVING = 100
# Counts by what it is, and bytes in the blob store.
Found = tuple[Mapping[str, int], int]


@dataclass(frozen=True)
class Kept:
    """Documents of a collection whose `field` begins with `value`, where {w} is the workspace's id.

    With `exact` it is that value.
    """

    collection: str
    field: str
    value: str
    exact: bool = False

    def where(self, workspace_id: str) -> Document:
        """The filter."""
        value = self.value.format(w=workspace_id)
        return {self.field: value} if self.exact else begins_with(self.field, value)


async def _nobody(_: str) -> list[str]:
    return []


async def _nothing(_: str) -> None:
    return None


async def _no_more(_: str) -> Found:
    return {}, 0


@dataclass(frozen=True)
class Rules:
    """How a service parts with a workspace; the functions take `workspaces/demo`.

    `labels` names collections for people, the others are "other documents"; `stay` are
    collections that are left alone. `living` names what lives and `end` asks it to stop.
    `count` and `remove` are for what lies elsewhere than in MongoDB; `remove` comes before
    the documents that say where it lies.
    """

    labels: Mapping[str, str]
    kept: Sequence[Kept] = ()
    stay: Sequence[str] = ()
    living: Callable[[str], Awaitable[list[str]]] = _nobody
    end: Callable[[str], Awaitable[None]] = _nothing
    count: Callable[[str], Awaitable[Found]] = _no_more
    remove: Callable[[str], Awaitable[Found]] = _no_more


@dataclass
class _Sum:
    counts: dict[str, int] = field(default_factory=dict)
    size_bytes: int = 0

    def add(self, label: str, count: int) -> None:
        if count:
            self.counts[label] = self.counts.get(label, 0) + count

    def found(self, more: Found) -> None:
        for label, count in more[0].items():
            self.add(label, count)
        self.size_bytes += more[1]


class WorkspaceData(platform_pb2_grpc.WorkspaceDataServiceServicer):
    """The servicer, and for the registry itself the same as functions."""

    def __init__(self, database: Database, rules: Rules, workspaces: Workspaces | None = None) -> None:
        self._database = database
        self._rules = rules
        self._workspaces = workspaces

    def registration(self) -> Registration:
        """How it is added to the server."""
        return Registration(
            self,
            platform_pb2_grpc.add_WorkspaceDataServiceServicer_to_server,
            pb.DESCRIPTOR.services_by_name["WorkspaceDataService"],
        )

    async def CountWorkspaceData(
        self, request: pb.CountWorkspaceDataRequest, context: Any
    ) -> pb.WorkspaceData:
        names.parse("workspaces/*", request.name)
        return await self.count(request.name)

    async def RemoveWorkspaceData(
        self, request: pb.RemoveWorkspaceDataRequest, context: Any
    ) -> pb.WorkspaceData:
        names.parse("workspaces/*", request.name)
        return await self.remove(request.name, abandon=request.abandon)

    async def count(self, workspace: str) -> pb.WorkspaceData:
        """Counts what there is."""
        total = _Sum()
        async for collection, where in self._documents(workspace):
            number = await self._database.raw[collection].count_documents(where)
            total.add(self._rules.labels.get(collection, OTHER), number)
        total.found(await self._rules.count(workspace))
        living = await self._rules.living(workspace)
        return pb.WorkspaceData(counts=total.counts, size_bytes=total.size_bytes, living=living[:_LIVING])

    async def remove(self, workspace: str, *, abandon: bool) -> pb.WorkspaceData:
        """Ends what lives; once nothing does, or with `abandon`, removes everything."""
        if self._workspaces is not None:
            self._workspaces.close(workspace)
        await self._rules.end(workspace)
        living = await self._rules.living(workspace)
        if living and not abandon:
            return pb.WorkspaceData(living=living[:_LIVING])
        total = _Sum()
        total.found(await self._rules.remove(workspace))
        failpoints.hit("workspace.removing")
        async for collection, where in self._documents(workspace):
            result = await self._database.raw[collection].delete_many(where)
            total.add(self._rules.labels.get(collection, OTHER), result.deleted_count)
        await self._forget_events(workspace)
        failpoints.hit("workspace.removed")
        return pb.WorkspaceData(counts=total.counts, size_bytes=total.size_bytes)

    async def _documents(self, workspace: str) -> AsyncIterator[tuple[str, Document]]:
        """Each collection with the filter of the workspace's documents."""
        workspace_id = names.id_of(workspace)
        otherwise: dict[str, list[Document]] = {}
        for kept in self._rules.kept:
            otherwise.setdefault(kept.collection, []).append(kept.where(workspace_id))
        left_alone = {_OUTBOX, *self._rules.stay}
        for collection in sorted(await self._database.raw.list_collection_names()):
            if collection in left_alone or collection.startswith("system."):
                continue
            by_name = [begins_with("_id", f"{workspace}/"), {"_id": workspace}]
            yield collection, {"$or": [*by_name, *otherwise.get(collection, [])]}

    async def _forget_events(self, workspace: str) -> None:
        """Journal entries that nobody has published yet."""
        subject = f"{self._database.namespace}.journal.{names.id_of(workspace)}."
        await self._database.raw[_OUTBOX].delete_many({"subject": {"$regex": f"^{re.escape(subject)}"}})


def begins_with(name: str, prefix: str) -> Document:
    """The filter for a field that begins with a text, as a range: an index serves it."""
    return {name: {"$gte": prefix, "$lt": prefix[:-1] + chr(ord(prefix[-1]) + 1)}}
