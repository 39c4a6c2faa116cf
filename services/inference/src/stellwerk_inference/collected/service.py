"""CollectionService: parse, check, store, reply."""

from typing import Any

from stellwerk_inference.batches.store import BatchStore
from stellwerk_inference.collected import domain
from stellwerk_inference.collected.retention import Retention
from stellwerk_inference.collected.store import Chosen, CollectedStore
from stellwerk_inference.endpoints.domain import PATTERN
from stellwerk_inference.store import Store, endpoint_of
from stellwerk_inference.upstream import Upstream
from stellwerk_platform import names
from stellwerk_protos.inference.v1 import collections_pb2 as pb
from stellwerk_protos.inference.v1 import collections_pb2_grpc
from stellwerk_protos.inference.v1.endpoints_pb2 import Endpoint


class CollectionService(collections_pb2_grpc.CollectionServiceServicer):
    """The servicer."""

    def __init__(
        self,
        collected: CollectedStore,
        store: Store,
        upstream: Upstream,
        retention: Retention,
        batches: BatchStore,
    ) -> None:
        self._collected = collected
        self._store = store
        self._upstream = upstream
        self._retention = retention
        self._batches = batches

    async def RecordCollectedFiles(
        self, request: pb.RecordCollectedFilesRequest, context: Any
    ) -> pb.RecordCollectedFilesResponse:
        places = domain.check_record(request)
        endpoint = endpoint_of(request.parent)
        # The endpoint may be on its way out: what it was asked until then is not lost.
        await self._store.endpoints.get(endpoint)
        await self._upstream.check_blobs(names.parent_of(endpoint), [item.file for item in request.files])
        await self._collected.record(endpoint, request.files, places)
        return pb.RecordCollectedFilesResponse()

    async def ListCollectedFiles(
        self, request: pb.ListCollectedFilesRequest, context: Any
    ) -> pb.ListCollectedFilesResponse:
        names.parse(PATTERN, request.parent)
        await self._store.endpoints.get(request.parent)
        files, token = await self._collected.page(request, *domain.hours(request))
        return pb.ListCollectedFilesResponse(files=files, next_page_token=token)

    async def ListCollectedBlobs(
        self, request: pb.ListCollectedBlobsRequest, context: Any
    ) -> pb.ListCollectedBlobsResponse:
        names.parse("workspaces/*", request.parent)
        domain.check_blobs(request.sha256)
        collected = await self._collected.referenced(request.parent, request.sha256)
        results = await self._batches.referenced(request.parent, request.sha256)
        return pb.ListCollectedBlobsResponse(sha256=sorted(collected | results))

    async def DeleteCollectedData(
        self, request: pb.DeleteCollectedDataRequest, context: Any
    ) -> pb.DeleteCollectedDataResponse:
        names.parse(PATTERN, request.parent)
        chosen = Chosen(request.parent, request.deployment, request.collection, domain.check_delete(request))
        await self._store.endpoints.get(request.parent)
        if request.validate_only:
            return await self._collected.count(chosen)
        return await self._retention.delete(chosen, "REQUESTED")

    async def SetDataRetention(self, request: pb.SetDataRetentionRequest, context: Any) -> Endpoint:
        names.parse(PATTERN, request.name)
        endpoint = await self._store.change(
            request.name,
            lambda tx: self._store.endpoints.update_in(
                tx, request.name, lambda e: domain.set_retention(e, request.days)
            ),
        )
        self._retention.wake()
        return endpoint
