"""QuotaService: the limits, and what is used of them."""

from typing import Any, Protocol

import grpc

from stellwerk_platform import names
from stellwerk_platform.errors import from_rpc
from stellwerk_protos.compute.v1 import computes_pb2, computes_pb2_grpc
from stellwerk_protos.registry.v1 import quotas_pb2 as pb
from stellwerk_protos.registry.v1 import quotas_pb2_grpc
from stellwerk_registry.quotas import domain
from stellwerk_registry.quotas.store import QuotaStore
from stellwerk_registry.workspaces.store import WorkspaceStore

_NAME = "workspaces/*/quota"
_ASK_SECONDS = 10.0


class Storage(Protocol):
    """Who knows what the blobs of a workspace take."""

    async def used_bytes(self, workspace: str) -> int:
        """Bytes of all blobs; `workspace` is the id."""


class QuotaService(quotas_pb2_grpc.QuotaServiceServicer):
    """The servicer."""

    def __init__(
        self, store: QuotaStore, workspaces: WorkspaceStore, storage: Storage, compute: grpc.aio.Channel
    ) -> None:
        self._store = store
        self._workspaces = workspaces
        self._storage = storage
        self._compute = computes_pb2_grpc.ComputeServiceStub(compute)

    async def GetQuota(self, request: pb.GetQuotaRequest, context: Any) -> pb.Quota:
        (workspace,) = names.parse(_NAME, request.name)
        await self._workspaces.check(workspace)
        quota = await self._store.of(f"workspaces/{workspace}")
        return quota if request.limits_only else await self._with_use(quota, workspace)

    async def SetQuota(self, request: pb.SetQuotaRequest, context: Any) -> pb.Quota:
        (workspace,) = names.parse(_NAME, request.name)
        domain.check_limits(request.limits)
        await self._workspaces.check(workspace)
        name = f"workspaces/{workspace}"
        begins = request.reset_budget or not (await self._store.of(name)).revision
        before = round((await self._usage(name)).cpu_seconds) if begins else None
        return await self._with_use(await self._store.set(name, request.limits, before), workspace)

    async def _with_use(self, quota: pb.Quota, workspace: str) -> pb.Quota:
        usage = await self._usage(f"workspaces/{workspace}")
        quota.used.nodes, quota.used.cores = usage.nodes, usage.cores
        quota.used.cpu_seconds = max(0, round(usage.cpu_seconds) - quota.cpu_seconds_before)
        quota.used.storage_bytes = await self._storage.used_bytes(workspace)
        return quota

    async def _usage(self, workspace: str) -> computes_pb2.Usage:
        request = computes_pb2.GetUsageRequest(name=workspace)
        try:
            return await self._compute.GetUsage(request, timeout=_ASK_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from error
