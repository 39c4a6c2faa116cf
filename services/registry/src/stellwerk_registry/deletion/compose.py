"""Who removes what of a workspace, and in which order."""

from collections.abc import Mapping

import grpc

from stellwerk_platform.workspace_data import WorkspaceData
from stellwerk_protos.platform.v1 import platform_pb2 as pb
from stellwerk_registry.deletion.remover import Remote, Remover
from stellwerk_registry.deletion.store import DeletionStore

# Who runs something first; keys of datastores are needed for as long as there are blobs; the journal
# goes last, with all that the others have said until then.
_ORDER = ("inference", "runs", "compute", "registry", "secrets", "telemetry")


def compose_remover(
    deletions: DeletionStore,
    own: WorkspaceData,
    channels: Mapping[str, grpc.aio.Channel],
    end_seconds: float,
) -> Remover:
    """The remover over all services; `own` is the registry's."""

    async def remove_own(workspace: str, abandon: bool) -> pb.WorkspaceData:
        return await own.remove(workspace, abandon=abandon)

    counts, removes = {"registry": own.count}, {"registry": remove_own}
    for service, channel in channels.items():
        remote = Remote(channel)
        counts[service], removes[service] = remote.count, remote.remove
    return Remover(
        deletions,
        {service: counts[service] for service in _ORDER},
        {service: removes[service] for service in _ORDER},
        end_seconds,
    )
