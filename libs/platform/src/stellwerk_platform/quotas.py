"""Limits of workspaces, as the services that enforce them know them.

A service remembers the limits of a workspace for some seconds and forgets them when
the journal says that they have changed. When neither bus nor registry answers, the
limits that were known last go on: a lost connection lifts no limit.
"""

import logging
import time
from collections.abc import Callable

import grpc
from nats.aio.msg import Msg

from stellwerk_platform.bus import Bus
from stellwerk_platform.errors import PlatformError, ResourceExhausted, from_rpc
from stellwerk_protos.registry.v1 import quotas_pb2, quotas_pb2_grpc
from stellwerk_protos.registry.v1.quotas_pb2 import Limits, Quota

log = logging.getLogger(__name__)
_REMEMBER_SECONDS = 10.0
_ASK_SECONDS = 10.0
_CURE = "Ask an administrator for a higher limit (`stellwerk quota set`)"


def quota_name(workspace: str) -> str:
    """`workspaces/demo/quota` of `workspaces/demo`."""
    return f"{workspace}/quota"


class Quotas:
    """The limits as one process knows them."""

    def __init__(self, registry: grpc.aio.Channel, changed: Callable[[], None] = lambda: None) -> None:
        self._stub = quotas_pb2_grpc.QuotaServiceStub(registry)
        self._changed = changed
        self._known: dict[str, tuple[Limits, float]] = {}

    async def follow(self, bus: Bus) -> None:
        """Forgets what the journal says has changed; the subscription ends with the connection."""
        await bus.client.subscribe(bus.names.subject("journal", "*", "registry", "quota", "*"), cb=self._told)

    async def limits(self, workspace: str) -> Limits:
        """The limits of a workspace; raises `PlatformError` when they were never known and nobody says."""
        known, until = self._known.get(workspace, (None, 0.0))
        if known is not None and until > time.monotonic():
            return known
        try:
            return (await self.quota(workspace, limits_only=True)).limits
        except PlatformError as error:
            if known is None:
                raise
            log.warning("The limits of %s may have changed: %s", workspace, error)
            return known

    async def quota(self, workspace: str, *, limits_only: bool = False) -> Quota:
        """Limits, and use, as the registry knows them now; raises `PlatformError`."""
        request = quotas_pb2.GetQuotaRequest(name=quota_name(workspace), limits_only=limits_only)
        try:
            quota = await self._stub.GetQuota(request, timeout=_ASK_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from error
        self._known[workspace] = quota.limits, time.monotonic() + _REMEMBER_SECONDS
        return quota

    async def check_start(self, workspace: str) -> None:
        """Raises `ResourceExhausted` when nothing may start: the budget is used up or the store is full."""
        limits = await self.limits(workspace)
        if limits.cpu_seconds or limits.storage_bytes:
            quota = await self.quota(workspace)
            check_cpu(quota)
            check_storage(quota.limits, quota.used.storage_bytes, 0)

    def forget(self, workspace: str) -> None:
        """Says that the workspace is gone."""
        self._known.pop(workspace, None)

    async def _told(self, message: Msg) -> None:
        _, workspace, _, _, _ = message.subject.rsplit(".", 4)
        known, _ = self._known.get(f"workspaces/{workspace}", (None, 0.0))
        if known is not None:
            self._known[f"workspaces/{workspace}"] = known, 0.0
        self._changed()


def check_cpu(quota: Quota) -> None:
    """Raises `ResourceExhausted` when the budget of CPU seconds is used up."""
    limit, used = quota.limits.cpu_seconds, quota.used.cpu_seconds
    if limit and used >= limit:
        raise ResourceExhausted(
            "QUOTA_CPU_SECONDS_EXCEEDED",
            f"The budget of {_workspace(quota)} is {limit:,} CPU seconds, and {used:,} are used.",
            f"{_CURE} or a new budget (`stellwerk quota set --reset`).",
            {"limit": str(limit), "used": str(used)},
        )


def check_storage(limits: Limits, used: int, wanted: int) -> None:
    """Raises `ResourceExhausted` when `wanted` more bytes have no room; 0 wanted: when it is over full."""
    limit = limits.storage_bytes
    if limit and used + wanted > limit:
        wants = f", and {wanted:,} more are wanted" if wanted else ""
        raise ResourceExhausted(
            "QUOTA_STORAGE_EXCEEDED",
            f"The workspace may store {limit:,} bytes; {used:,} are used{wants}.",
            f"Remove runs or data (`stellwerk run remove`, docs/retention.md). {_CURE}.",
            {"limit": str(limit), "used": str(used), "wanted": str(wanted)},
        )


def _workspace(quota: Quota) -> str:
    return quota.name.removesuffix("/quota").removeprefix("workspaces/")
