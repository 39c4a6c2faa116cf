"""EndpointService: parse, check, change, reply."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from pymongo.errors import DuplicateKeyError

from stellwerk_inference.batches import settings as batch_settings
from stellwerk_inference.changes import Changes
from stellwerk_inference.deployments import domain as deployments
from stellwerk_inference.deployments import requests, rollouts
from stellwerk_inference.endpoints import domain as endpoints
from stellwerk_inference.keys.domain import check_auth_mode
from stellwerk_inference.lifecycle import Lifecycle
from stellwerk_inference.routes import domain as routes
from stellwerk_inference.store import Store, visible
from stellwerk_inference.upstream import Upstream
from stellwerk_platform import names
from stellwerk_platform.auth import current_caller
from stellwerk_platform.checks import check_description, check_tags
from stellwerk_platform.errors import Aborted
from stellwerk_platform.journal import Fact
from stellwerk_protos.common.v1.common_pb2 import File
from stellwerk_protos.inference.v1 import endpoints_pb2 as pb
from stellwerk_protos.inference.v1 import endpoints_pb2_grpc

_MOST_USES = 100


class EndpointService(endpoints_pb2_grpc.EndpointServiceServicer):
    """The servicer."""

    def __init__(self, store: Store, lifecycle: Lifecycle, changes: Changes, upstream: Upstream) -> None:
        self._store = store
        self._lifecycle = lifecycle
        self._changes = changes
        self._upstream = upstream

    async def CreateEndpoint(self, request: pb.CreateEndpointRequest, context: Any) -> pb.Endpoint:
        names.parse("workspaces/*", request.parent)
        names.check_id("endpoints", request.endpoint_id)
        check_description(request.description)
        check_tags(request.tags)
        check_auth_mode(request.auth_mode)
        endpoints.check_kind(request.kind)
        await self._upstream.check_workspace(request.parent)
        endpoint = endpoints.new(request, current_caller().subject)
        return await self._store.create_endpoint(endpoint, Fact("created", "REQUESTED"), request.request_id)

    async def GetEndpoint(self, request: pb.GetEndpointRequest, context: Any) -> pb.Endpoint:
        names.parse(endpoints.PATTERN, request.name)
        return await self._store.endpoints.get(request.name)

    async def ListEndpoints(self, request: pb.ListEndpointsRequest, context: Any) -> pb.ListEndpointsResponse:
        names.parse("workspaces/*", request.parent)
        await self._upstream.check_workspace(request.parent)
        items, token = await self._store.endpoints.page(
            visible(request.parent), request.page_size, request.page_token
        )
        return pb.ListEndpointsResponse(endpoints=items, next_page_token=token)

    async def SetTraffic(self, request: pb.SetTrafficRequest, context: Any) -> pb.Endpoint:
        names.parse(endpoints.PATTERN, request.name)
        return await self._lifecycle.set_traffic(request)

    async def DeleteEndpoint(self, request: pb.DeleteEndpointRequest, context: Any) -> pb.Endpoint:
        names.parse(endpoints.PATTERN, request.name)
        return await self._lifecycle.delete_endpoint(request.name)

    async def CreateDeployment(self, request: pb.CreateDeploymentRequest, context: Any) -> pb.Deployment:
        names.parse(endpoints.PATTERN, request.parent)
        check_tags(request.tags)
        requests.check_request(request)
        if (earlier := await self._store.deployments.created_by(request.request_id)) is not None:
            return earlier
        resolved = await self._resolve(request)
        deployment = deployments.new(request, *resolved, current_caller().subject)
        try:
            return await self._lifecycle.create_deployment(deployment, request.request_id)
        except DuplicateKeyError:
            return await self._store.created_by(self._store.deployments, deployment.name, request.request_id)

    async def _resolve(
        self, request: pb.CreateDeploymentRequest
    ) -> tuple[Sequence[str], str, Sequence[File]]:
        """Models and environment with the numbers of versions, and the files of the script's folder, without
        a script those of the model; raises `NotFound`."""
        endpoint = await self._store.endpoints.get(request.parent)
        batch_settings.check_kind(request, endpoint.kind)
        await self._upstream.check_start(names.parent_of(request.parent))
        await self._upstream.check_compute(request.compute)
        environment = await self._upstream.environment(request.environment)
        models = await asyncio.gather(*(self._upstream.model(model) for model in request.models))
        named = [model.name for model in models]
        if not request.scoring_script:
            requests.check_without_script(request, models[0])
            return named, environment, models[0].files
        files = await self._upstream.files(request.snapshot)
        requests.check_script(request.scoring_script, files)
        return named, environment, files

    async def UpdateDeployment(self, request: pb.UpdateDeploymentRequest, context: Any) -> pb.Deployment:
        names.parse(requests.PATTERN, request.name)
        current = await self._store.deployments.get(request.name)
        deployments.check_open(current)
        wanted = requests.change(current, request)
        requests.check_request(wanted)
        rollout = deployments.rollout_of(wanted, *await self._resolve(wanted), current_caller().subject)
        fields = list(request.update_mask.paths)

        def update(newest: pb.Deployment) -> Fact | None:
            if not requests.is_same_request(requests.change(newest, request), wanted):
                raise Aborted(
                    "REVISION_CHANGED", f"{request.name} was updated by somebody else.", "Read it again."
                )
            return deployments.update(newest, rollout, wanted, fields)

        return await self._lifecycle.change_deployment(request.name, update, request.etag)

    async def RollBackDeployment(self, request: pb.RollBackDeploymentRequest, context: Any) -> pb.Deployment:
        names.parse(requests.PATTERN, request.name)
        await self._upstream.check_start(f"workspaces/{names.workspace_of(request.name)}")
        creator = current_caller().subject
        return await self._lifecycle.change_deployment(
            request.name, lambda d: deployments.roll_back(d, request.rollout, creator)
        )

    async def ListReplicas(self, request: pb.ListReplicasRequest, context: Any) -> pb.ListReplicasResponse:
        names.parse(requests.PATTERN, request.parent)
        await self._store.deployments.get(request.parent)
        items, token = await self._store.replicas.page(
            {"parent": request.parent},
            request.page_size,
            request.page_token,
            key="create_time",
            descending=True,
        )
        return pb.ListReplicasResponse(replicas=items, next_page_token=token)

    async def ListModelUses(self, request: pb.ListModelUsesRequest, context: Any) -> pb.ListModelUsesResponse:
        found = await self._store.deployments_with(request.model_version)
        using = [d.name for d in found if request.model_version in rollouts.models_of(d)]
        return pb.ListModelUsesResponse(deployments=sorted(using)[:_MOST_USES])

    async def GetDeployment(self, request: pb.GetDeploymentRequest, context: Any) -> pb.Deployment:
        names.parse(requests.PATTERN, request.name)
        return await self._store.deployments.get(request.name)

    async def ListDeployments(
        self, request: pb.ListDeploymentsRequest, context: Any
    ) -> pb.ListDeploymentsResponse:
        names.parse(endpoints.PATTERN, request.parent)
        await self._store.endpoints.get(request.parent)
        items, token = await self._store.deployments.page(
            visible(request.parent), request.page_size, request.page_token
        )
        return pb.ListDeploymentsResponse(deployments=items, next_page_token=token)

    async def WatchDeployment(
        self, request: pb.WatchDeploymentRequest, context: Any
    ) -> AsyncIterator[pb.Deployment]:
        names.parse(requests.PATTERN, request.name)
        revision = 0
        with self._changes.watch() as waiter:
            while True:
                await waiter.next()
                deployment = await self._store.deployments.get(request.name)
                if deployment.revision != revision:
                    revision = deployment.revision
                    yield deployment
                if deployments.is_settled(deployment):
                    return

    async def DeleteDeployment(self, request: pb.DeleteDeploymentRequest, context: Any) -> pb.Deployment:
        names.parse(requests.PATTERN, request.name)
        return await self._lifecycle.delete_deployment(request.name)

    async def WatchRoutes(
        self, request: pb.WatchRoutesRequest, context: Any
    ) -> AsyncIterator[pb.WatchRoutesResponse]:
        sent: pb.WatchRoutesResponse | None = None
        with self._changes.watch() as waiter:
            while True:
                await waiter.next()
                table = routes.table(*await self._store.served(), await self._store.key_digests())
                if table != sent:
                    sent = table
                    yield table
