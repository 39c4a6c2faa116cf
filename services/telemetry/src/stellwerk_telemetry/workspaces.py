"""Whether a workspace exists."""

import grpc

from stellwerk_platform.errors import from_rpc
from stellwerk_platform.names import WILDCARD
from stellwerk_protos.registry.v1 import workspaces_pb2, workspaces_pb2_grpc
from stellwerk_telemetry.events.store import Events


class Workspaces:
    """Known workspaces.

    What has events exists: so the journal can be read while `registry` is away.
    """

    def __init__(self, events: Events, registry: grpc.aio.Channel) -> None:
        self._events = events
        self._stub = workspaces_pb2_grpc.WorkspaceServiceStub(registry)
        self._known = {WILDCARD}

    def forget(self, workspace: str) -> None:
        """Says that the workspace is gone."""
        self._known.discard(workspace)

    async def check(self, workspace: str) -> None:
        """Raises `NotFound` for a workspace that there never was."""
        if workspace in self._known:
            return
        if not await self._events.holds(workspace):
            request = workspaces_pb2.GetWorkspaceRequest(name=f"workspaces/{workspace}")
            try:
                await self._stub.GetWorkspace(request, timeout=10)
            except grpc.aio.AioRpcError as error:
                raise from_rpc(error) from error
        self._known.add(workspace)
