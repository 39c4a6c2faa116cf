"""Allocations in MongoDB, and what lies beside each one, outside the journal."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from opentelemetry import context as otel_context
from pymongo import ASCENDING, DESCENDING, IndexModel
from pymongo.errors import DuplicateKeyError

from stellwerk_compute.allocations import domain
from stellwerk_compute.placement.domain import Placed, Waiting
from stellwerk_compute.usage.store import UsageStore
from stellwerk_platform import names, telemetry
from stellwerk_platform.documents import Document, from_document
from stellwerk_platform.journal import Fact
from stellwerk_platform.mongo import Collection, Database, Transaction, missing
from stellwerk_protos.common.v1 import common_pb2
from stellwerk_protos.compute.v1 import computes_pb2, workloads_pb2

_RUN = workloads_pb2.WorkloadKind.Name(workloads_pb2.WORKLOAD_KIND_RUN)
_BESIDE = "beside"
_LIVING = 1_000


@dataclass(frozen=True)
class Beside:
    """What is known about an allocation besides its message.

    `traceparent` is that of the submit, `report_sequence` the last report that was
    `traceparent` is that of the submit, `report_sequence` the last report that was
    applied, `earlier_state` the one before the node fell silent, `cpu_seconds` what its
    node has said last.
    """

    pool: str = ""
    traceparent: str = ""
    report_sequence: int = 0
    earlier_state: int = 0
    cancel_code: str = ""
    cancel_message: str = ""
    cpu_seconds: float = 0.0

    @property
    def cancel_reason(self) -> common_pb2.Reason:
        """Who asked to stop, and why."""
        return common_pb2.Reason(code=self.cancel_code, message=self.cancel_message)


# Changes the allocation; gives the fact, and the new state of what lies beside.
Change = Callable[[computes_pb2.Allocation, Beside], tuple[Fact | None, Beside]]


@dataclass(frozen=True)
class Held:
    """An allocation with what lies beside it."""

    allocation: computes_pb2.Allocation
    beside: Beside


class AllocationStore:
    """The allocations of all workspaces."""

    def __init__(self, database: Database, usage: UsageStore) -> None:
        self._database = database
        self._usage = usage
        self._collection = Collection(
            database,
            "allocations",
            computes_pb2.Allocation,
            indexes=[
                IndexModel([("state", ASCENDING), ("create_time", ASCENDING), ("_id", ASCENDING)]),
                IndexModel([("node", ASCENDING), ("live", ASCENDING)]),
                IndexModel([("workspace", ASCENDING), ("create_time", DESCENDING), ("_id", DESCENDING)]),
            ],
            extra=lambda allocation: {
                "workspace": names.workspace_of(allocation.name),
                "live": allocation.state not in domain.TERMINAL,
            },
        )
        self._raw = self._collection.raw

    async def open(self) -> None:
        """Creates the collection."""
        await self._collection.open()

    async def get(self, name: str) -> computes_pb2.Allocation:
        """Raises `NotFound`."""
        return await self._collection.get(name)

    async def find(self, name: str) -> Held | None:
        """The allocation with what lies beside it, or None."""
        document = await self._raw.find_one({"_id": name})
        return None if document is None else _held(document)

    async def page(self, workspace: str, size: int, token: str) -> tuple[list[computes_pb2.Allocation], str]:
        """A page, newest first."""
        return await self._collection.page(
            {"workspace": workspace}, size, token, key="create_time", descending=True
        )

    async def create(self, allocation: computes_pb2.Allocation, fact: Fact, beside: Beside) -> None:
        """Stores a new allocation; does nothing when there is one already."""

        async def work(tx: Transaction) -> None:
            fresh = computes_pb2.Allocation()
            fresh.CopyFrom(allocation)
            await self._collection.create_in(tx, fresh, fact)
            await self._set_beside(tx, fresh.name, beside)

        if await self._collection.find(allocation.name) is not None:
            return
        try:
            await self._database.commit(work)
        except DuplicateKeyError:
            return  # another replica handled the same event

    async def change(self, name: str, change: Change) -> computes_pb2.Allocation:
        """Applies `change` in one transaction; raises `NotFound`."""
        return await self._database.commit(lambda tx: self.change_in(tx, name, change))

    async def change_in(self, tx: Transaction, name: str, change: Change) -> computes_pb2.Allocation:
        """The same inside a transaction. The journal entry belongs to the trace of the submit."""
        document = await self._raw.find_one({"_id": name}, {_BESIDE: 1}, session=tx.session)
        if document is None:
            raise missing(computes_pb2.Allocation, name)
        before = after = _beside(document)

        def apply(allocation: computes_pb2.Allocation) -> Fact | None:
            nonlocal after
            fact, after = change(allocation, before)
            if fact is not None:
                allocation.cpu_seconds = after.cpu_seconds
            return fact

        with _trace(before.traceparent):
            allocation = await self._collection.update_in(tx, name, apply)
        if after != before:
            await self._set_beside(tx, name, after)
        if after.cpu_seconds > before.cpu_seconds:
            workspace = f"workspaces/{names.workspace_of(name)}"
            await self._usage.add_in(tx, workspace, after.cpu_seconds - before.cpu_seconds)
        return allocation

    async def silence_in(self, tx: Transaction, node: str, cause: str) -> None:
        """Marks what lives on a node whose lease ran out; `cause` is the event that says so."""

        def silence(allocation: computes_pb2.Allocation, beside: Beside) -> tuple[Fact | None, Beside]:
            earlier = allocation.state
            fact = domain.silence(allocation)
            if fact is None:
                return None, beside
            return replace(fact, cause=cause), replace(beside, earlier_state=earlier)

        where = {"node": node, "live": True}
        found = await self._raw.find(where, {"_id": 1}, session=tx.session).to_list(None)
        for document in found:
            await self.change_in(tx, document["_id"], silence)

    async def abandoned(self, since: datetime) -> list[str]:
        """What was to be canceled on a silent node, and has not changed since then."""
        where = {
            "state": computes_pb2.AllocationState.Name(domain.NOT_RESPONDING),
            "cancel_requested": True,
            "update_time": {"$lte": since},
        }
        return [document["_id"] async for document in self._raw.find(where, {"_id": 1})]

    async def on_node(self, node: str) -> list[Held]:
        """What lives on a node."""
        return [_held(document) async for document in self._raw.find({"node": node, "live": True})]

    async def queued(self) -> list[Waiting]:
        """What waits to be placed, oldest first."""
        where = {"state": computes_pb2.AllocationState.Name(domain.QUEUED)}
        fields = {"workload.kind": 1, "workload.cores": 1, "reason.code": 1, f"{_BESIDE}.pool": 1}
        cursor = self._raw.find(where, fields).sort([("create_time", ASCENDING), ("_id", ASCENDING)])
        return [
            Waiting(
                name=document["_id"],
                pool=document[_BESIDE]["pool"],
                takes_slot=document["workload"]["kind"] == _RUN,
                reason_code=document["reason"]["code"],
                workspace=f"workspaces/{names.workspace_of(document['_id'])}",
                cores=cores_of(document),
            )
            async for document in cursor
        ]

    async def placed(self, where: Document | None = None) -> list[Placed]:
        """What lives on nodes."""
        fields = {"node": 1, "workload.kind": 1, "workload.cores": 1}
        found = self._raw.find({"live": True, "node": {"$gt": ""}, **(where or {})}, fields)
        return [
            Placed(
                workspace=f"workspaces/{names.workspace_of(document['_id'])}",
                node=document["node"],
                takes_slot=document["workload"]["kind"] == _RUN,
                cores=cores_of(document),
            )
            async for document in found
        ]

    async def placed_of(self, workspace_id: str) -> list[Placed]:
        """What lives on nodes of one workspace."""
        return await self.placed({"workspace": workspace_id})

    async def living(self, workspace_id: str) -> list[str]:
        """What has not ended in a workspace: the runs and replicas that are served."""
        where = {"workspace": workspace_id, "live": True}
        return [d["owner"] async for d in self._raw.find(where, {"owner": 1}).limit(_LIVING)]

    async def _set_beside(self, tx: Transaction, name: str, beside: Beside) -> None:
        await self._raw.update_one({"_id": name}, {"$set": {_BESIDE: asdict(beside)}}, session=tx.session)


def cores_of(document: Mapping[str, Any]) -> int:
    """What an allocation counts as in quotas: one core unless its workload says more."""
    return int(document["workload"].get("cores", 0)) or 1


def _beside(document: Mapping[str, Any]) -> Beside:
    values: dict[str, Any] = document.get(_BESIDE, {})
    return Beside(**values)


def _held(document: Mapping[str, Any]) -> Held:
    return Held(from_document(computes_pb2.Allocation, document), _beside(document))


@contextmanager
def _trace(traceparent: str) -> Iterator[None]:
    """Entries written here belong to the trace of the submit, whoever causes them."""
    token = otel_context.attach(telemetry.context_from(traceparent))
    try:
        yield
    finally:
        otel_context.detach(token)
