"""DatastoreService: parse, probe, store, reply."""

import asyncio
import logging
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from stellwerk_platform import names
from stellwerk_platform.access import Guard
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
        self,
        store: DatastoreStore,
        workspaces: WorkspaceStore,
        places: Places,
        lies_in: LiesIn,
        guard: Guard,
    ) -> None:
        self._guard = guard
        self._store = store
        self._workspaces = workspaces
        self._places = places
        self._lies_in = lies_in

    async def CreateDatastore(self, request: pb.CreateDatastoreRequest, context: Any) -> pb.Datastore:
        datastore = domain.new(request, current_caller().subject)
        await self._workspaces.check(names.workspace_of(request.parent))
        if (existing := await self._store.created_by(request.request_id)) is not None:
            return existing
        await _check_host(datastore.endpoint)
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
        datastore = await self._store.get(request.name)
        return datastore if await self._may_see_place(request.name) else domain.without_place(datastore)

    async def ListDatastores(
        self, request: pb.ListDatastoresRequest, context: Any
    ) -> pb.ListDatastoresResponse:
        (workspace,) = names.parse("workspaces/*", request.parent)
        await self._workspaces.check(workspace)
        items, token = await self._store.page({"workspace": workspace}, request.page_size, request.page_token)
        if not await self._may_see_place(request.parent):
            items = [domain.without_place(item) for item in items]
        return pb.ListDatastoresResponse(datastores=items, next_page_token=token)

    async def _may_see_place(self, name: str) -> bool:
        """Whoever may not see which secrets there are does not see where the content lies."""
        return await self._guard.may(current_caller(), "secret.read", name)

    async def DeleteDatastore(
        self, request: pb.DeleteDatastoreRequest, context: Any
    ) -> pb.DeleteDatastoreResponse:
        names.parse(domain.PATTERN, request.name)
        await self._store.delete(request.name, self._lies_in)
        return pb.DeleteDatastoreResponse()


async def _check_host(endpoint: str) -> None:
    """Raises `InvalidArgument` for a name behind which there is an address that no datastore may have.

    One that cannot be resolved fails its probe.
    """
    host = urlsplit(endpoint).hostname
    if host:
        with suppress(OSError, UnicodeError):
            found = await asyncio.get_running_loop().getaddrinfo(host, None)
            for *_, (address, *_) in found:
                domain.check_address(str(address))
