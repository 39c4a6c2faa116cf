"""DatastoreService: parse, probe, store, reply."""

import logging
from typing import Any

from stellwerk_platform import names
from stellwerk_platform.auth import current_caller
from stellwerk_platform.errors import FailedPrecondition, PlatformError
from stellwerk_platform.journal import Fact
from stellwerk_protos.registry.v1 import datastores_pb2 as pb
from stellwerk_protos.registry.v1 import datastores_pb2_grpc
from stellwerk_registry.datastores import domain
from stellwerk_registry.datastores.places import Places
from stellwerk_registry.datastores.store import DatastoreStore, LiesIn
from stellwerk_registry.workspaces.store import WorkspaceStore

log = logging.getLogger(__name__)


class DatastoreService(datastores_pb2_grpc.DatastoreServiceServicer):
    """The servicer."""

    def __init__(
        self, store: DatastoreStore, workspaces: WorkspaceStore, places: Places, lies_in: LiesIn
    ) -> None:
        self._store = store
        self._workspaces = workspaces
        self._places = places
        self._lies_in = lies_in

    async def CreateDatastore(self, request: pb.CreateDatastoreRequest, context: Any) -> pb.Datastore:
        datastore = domain.new(request, current_caller().subject)
        await self._workspaces.check(names.workspace_of(request.parent))
        if (existing := await self._store.created_by(request.request_id)) is not None:
            return existing
        await self._probe(datastore)
        fact = Fact("created", "REQUESTED", f"{datastore.creator} created it.")
        return await self._store.create(datastore, fact, request.request_id)

    async def _probe(self, datastore: pb.Datastore) -> None:
        """Writes, reads and deletes a probe; raises `FailedPrecondition` with what went wrong."""
        try:
            await self._places.probe(datastore)
        except PlatformError as error:
            raise FailedPrecondition(
                "DATASTORE_UNUSABLE",
                f"The probe of {datastore.endpoint or 'the blob store'} failed: {error.message}",
                "Check endpoint, bucket and both secrets: the keys must be allowed to put, get and delete "
                "objects below the prefix.",
            ) from error

    async def GetDatastore(self, request: pb.GetDatastoreRequest, context: Any) -> pb.Datastore:
        names.parse(domain.PATTERN, request.name)
        return _shown(await self._store.get(request.name))

    async def ListDatastores(
        self, request: pb.ListDatastoresRequest, context: Any
    ) -> pb.ListDatastoresResponse:
        (workspace,) = names.parse("workspaces/*", request.parent)
        await self._workspaces.check(workspace)
        items, token = await self._store.page({"workspace": workspace}, request.page_size, request.page_token)
        return pb.ListDatastoresResponse(datastores=map(_shown, items), next_page_token=token)

    async def DeleteDatastore(
        self, request: pb.DeleteDatastoreRequest, context: Any
    ) -> pb.DeleteDatastoreResponse:
        names.parse(domain.PATTERN, request.name)
        await self._store.delete(request.name, self._lies_in)
        return pb.DeleteDatastoreResponse()


def _shown(datastore: pb.Datastore) -> pb.Datastore:
    """Workloads and nodes need no more than a Reader."""
    if current_caller().role in ("Workload", "Node"):
        return domain.without_place(datastore)
    return datastore
