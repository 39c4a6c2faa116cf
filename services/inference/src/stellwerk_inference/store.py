"""Endpoints, deployments and replicas in MongoDB.

They move together, so every change of one endpoint and of what lies below it runs in
a transaction that holds the endpoint's lock: two changes at the same moment, by two
processes, follow each other. A deleted resource stays as a tombstone, so that a new
one of that name goes on counting revisions.
"""

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from bson import Binary
from pymongo import ASCENDING, IndexModel
from pymongo.errors import DuplicateKeyError

from stellwerk_inference.endpoints.domain import PATTERN
from stellwerk_inference.replicas.domain import ENDED, LIVE, deployment_of
from stellwerk_inference.states import CREATING, DELETED, FAILED, SUCCEEDED, name_of
from stellwerk_platform import names
from stellwerk_platform.documents import Document
from stellwerk_platform.errors import AlreadyExists
from stellwerk_platform.journal import Fact
from stellwerk_platform.mongo import Collection, Database, Session, Transaction, missing, request_key
from stellwerk_protos.inference.v1 import batches_pb2
from stellwerk_protos.inference.v1 import endpoints_pb2 as pb

T = TypeVar("T")
R = TypeVar("R", pb.Endpoint, pb.Deployment)
Named = TypeVar("Named", pb.Endpoint, pb.Deployment, batches_pb2.BatchJob)
# Beside an endpoint's message, so that no answer and no event has it: SHA-256 by `primary`, `secondary`.
_KEY_DIGESTS = "key_digests"
_BATCH = "workload.batch_settings"
_ONLINE: Document = {_BATCH: {"$exists": False}}
# Longer than failures are counted; deployments/domain.py.
_ENDED_REPLICAS = timedelta(minutes=30)
_MOST_STARTS = 10_000


class Store:
    """The three collections."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.endpoints = Collection(database, "endpoints", pb.Endpoint, extra=_parent)
        self.deployments = Collection(
            database,
            "deployments",
            pb.Deployment,
            indexes=[
                IndexModel([("parent", ASCENDING), ("_id", ASCENDING)]),
                IndexModel([("state", ASCENDING)]),
                IndexModel([("rollouts.workload.inputs.resource", ASCENDING)]),
            ],
            extra=_parent,
        )
        self.replicas = Collection(
            database,
            "replicas",
            pb.Replica,
            indexes=[
                IndexModel([("parent", ASCENDING), ("create_time", ASCENDING)]),
                IndexModel([("state", ASCENDING)]),
            ],
            extra=_parent,
        )

    async def open(self) -> None:
        """Creates collections and indexes."""
        for collection in (self.endpoints, self.deployments, self.replicas):
            await collection.open()

    async def starts(self, deployments: Sequence[str], within: timedelta) -> dict[str, list[float]]:
        """Seconds from creation to readiness of the replicas that were created lately, by deployment."""
        since = datetime.now(UTC) - within
        where = {"parent": {"$in": list(deployments)}, "create_time": {"$gte": since}}
        shown = {"parent": 1, "create_time": 1, "ready_time": 1}
        found: dict[str, list[float]] = {}
        async for document in self.replicas.raw.find(where, shown).limit(_MOST_STARTS):
            if "ready_time" in document:
                took = document["ready_time"] - document["create_time"]
                found.setdefault(document["parent"], []).append(took.total_seconds())
        return found

    async def endpoints_with_retention(self) -> list[pb.Endpoint]:
        """Endpoints, deleted ones too, that keep their collected data for a time only."""
        return await self.endpoints.all({"data_retention_days": {"$gt": 0}})

    async def change(self, endpoint: str, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """Runs `work` while nobody else changes anything of the endpoint; raises `NotFound`."""

        async def locked(tx: Transaction) -> T:
            result = await self.endpoints.raw.update_one(
                {"_id": endpoint}, {"$inc": {"lock": 1}}, session=tx.session
            )
            if result.matched_count == 0:
                raise missing(pb.Endpoint, endpoint)
            return await work(tx)

        return await self._database.commit(locked)

    async def create_endpoint(self, endpoint: pb.Endpoint, fact: Fact, request_id: str) -> pb.Endpoint:
        """Stores a new endpoint; the first answer for a repeated request; raises `AlreadyExists`."""

        async def work(tx: Transaction) -> pb.Endpoint:
            return await self.create_in(tx, self.endpoints, endpoint, fact, request_id)

        try:
            return await self._database.commit(work)
        except DuplicateKeyError:
            return await self.created_by(self.endpoints, endpoint.name, request_id)

    async def create_in(
        self, tx: Transaction, collection: Collection[R], resource: R, fact: Fact, request_id: str
    ) -> R:
        """Stores a new resource, in the place of a deleted one if there is one.

        Lets `DuplicateKeyError` through for a name that is taken: ask `created_by` then.
        """
        existing = await collection.find(resource.name, tx.session)
        if existing is None or existing.state != DELETED:
            return await collection.create_in(tx, resource, fact, request_id)
        return await self.replace_in(tx, collection, resource, fact, request_id)

    async def replace_in(
        self, tx: Transaction, collection: Collection[Named], resource: Named, fact: Fact, request_id: str
    ) -> Named:
        """Stores a new resource in the place of one that is no more; it goes on counting revisions."""
        self._database.check_open(resource.name)

        def revive(tombstone: Named) -> Fact:
            revision = tombstone.revision
            tombstone.CopyFrom(resource)
            tombstone.revision = revision
            return fact

        mark: Document = {"$unset": {_KEY_DIGESTS: ""}}
        if request_id:
            mark["$set"] = {"request_id": request_key(request_id)}
        else:
            mark["$unset"]["request_id"] = ""
        await collection.raw.update_one({"_id": resource.name}, mark, session=tx.session)
        return await collection.update_in(tx, resource.name, revive)

    async def created_by(self, collection: Collection[R], name: str, request_id: str) -> R:
        """What an earlier request with this id created; raises `AlreadyExists` if there was none."""
        existing = await collection.created_by(request_id)
        if existing is None:
            raise AlreadyExists("ALREADY_EXISTS", f"{name} exists already.", "Choose another name.")
        return existing

    async def set_key(
        self, endpoint: str, which: str, digest: bytes, change: Callable[[pb.Endpoint], Fact | None]
    ) -> pb.Endpoint:
        """Replaces the digest of one of the keys, beside the endpoint; raises `NotFound`."""

        async def work(tx: Transaction) -> pb.Endpoint:
            changed = await self.endpoints.update_in(tx, endpoint, change)
            update = {"$set": {f"{_KEY_DIGESTS}.{which}": Binary(digest)}}
            await self.endpoints.raw.update_one({"_id": endpoint}, update, session=tx.session)
            return changed

        return await self.change(endpoint, work)

    async def key_digests(self) -> dict[str, list[bytes]]:
        """The digests of all keys that open an endpoint, by its name."""
        where = {"state": name_of(SUCCEEDED), _KEY_DIGESTS: {"$exists": True}}
        found = self.endpoints.raw.find(where, {_KEY_DIGESTS: 1})
        return {
            document["_id"]: [bytes(digest) for _, digest in sorted(document[_KEY_DIGESTS].items())]
            async for document in found
        }

    async def deployments_of(self, endpoint: str, session: Session | None = None) -> list[pb.Deployment]:
        """All deployments of an endpoint, deleted ones too."""
        return await self.deployments.all({"parent": endpoint}, session)

    async def replicas_of(
        self, deployment: pb.Deployment, session: Session | None = None
    ) -> list[pb.Replica]:
        """The replicas of a deployment, but none of an earlier one of that name.

        Without those that ended long ago: nothing depends on them any more, and with scaling there are many.
        """
        since = deployment.create_time.ToDatetime(UTC)
        recently = {"update_time": {"$gte": datetime.now(UTC) - _ENDED_REPLICAS}}
        lasting = {"state": {"$nin": [name_of(state) for state in ENDED]}}
        where = {"parent": deployment.name, "create_time": {"$gte": since}, "$or": [lasting, recently]}
        return await self.replicas.all(where, session)

    async def ended_replicas(self, names: Sequence[str]) -> list[str]:
        """Those of some replicas of which nothing runs any more."""
        where = {"_id": {"$in": list(names)}, "state": {"$in": [name_of(state) for state in ENDED]}}
        return [document["_id"] async for document in self.replicas.raw.find(where, {"_id": 1})]

    async def deployments_with(self, model_version: str) -> list[pb.Deployment]:
        """Those that are not gone and have a rollout, failed or not, with the model version."""
        where = {"rollouts.workload.inputs.resource": model_version, "state": {"$ne": name_of(DELETED)}}
        return await self.deployments.all(where)

    async def starting_replicas(self) -> list[pb.Replica]:
        """Replicas whose scoring server runs but is not known to be ready."""
        return await self.replicas.all({"state": name_of(CREATING), "http_address": {"$exists": True}})

    async def incomplete_deployments(self) -> list[pb.Deployment]:
        """Deployments that were ready and lack a replica."""
        lacking = {"$lt": [{"$ifNull": ["$ready_replica_count", 0]}, "$replica_count"]}
        return await self.deployments.all({"state": name_of(SUCCEEDED), "$expr": lacking})

    async def scaled_deployments(self) -> list[pb.Deployment]:
        """Ready deployments whose replicas the load decides on."""
        where = {"state": name_of(SUCCEEDED), "scale_settings": {"$exists": True}}
        return await self.deployments.all({**where, **_ONLINE})

    async def batch_deployments(self) -> list[pb.Deployment]:
        """Ready deployments whose replicas the jobs decide on."""
        where = {"state": name_of(SUCCEEDED), "scale_settings": {"$exists": True}}
        return await self.deployments.all({**where, _BATCH: {"$exists": True}})

    async def served(self) -> tuple[list[pb.Endpoint], list[pb.Deployment], list[pb.Replica]]:
        """What routes are made of: what is open or lives. Batch endpoints have none."""
        batch = pb.EndpointKind.Name(pb.ENDPOINT_KIND_BATCH)
        endpoints = await self.endpoints.all({"state": name_of(SUCCEEDED), "kind": {"$ne": batch}})
        existing = await self.deployments.all({"state": {"$in": [name_of(SUCCEEDED), name_of(FAILED)]}})
        live = [name_of(state) for state in LIVE]
        return endpoints, existing, await self.replicas.all({"state": {"$in": live}})


def visible(parent: str) -> Document:
    """The filter of a listing: below `parent`, without what is deleted."""
    return {"parent": parent, "state": {"$ne": name_of(DELETED)}}


def endpoint_of(name: str) -> str:
    """The endpoint of a deployment or replica."""
    return "/".join(name.split("/")[: len(PATTERN.split("/"))])


def _parent(resource: pb.Endpoint | pb.Deployment | pb.Replica) -> Document:
    if isinstance(resource, pb.Replica):
        return {"parent": deployment_of(resource.name)}
    return {"parent": names.parent_of(resource.name)}
