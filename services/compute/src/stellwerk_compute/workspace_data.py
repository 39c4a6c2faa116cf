"""What `compute` keeps of a workspace."""

from stellwerk_compute.allocations.store import AllocationStore
from stellwerk_platform.mongo import Database
from stellwerk_platform.names import id_of
from stellwerk_platform.workspace_data import Rules, WorkspaceData
from stellwerk_platform.workspaces import Workspaces

_LABELS = {"computes": "computes", "allocations": "allocations"}


def workspace_data(database: Database, workspaces: Workspaces, allocations: AllocationStore) -> WorkspaceData:
    """Allocations end with the runs and replicas that they serve, so nothing is asked to end here."""

    async def living(workspace: str) -> list[str]:
        return await allocations.living(id_of(workspace))

    return WorkspaceData(database, Rules(labels=_LABELS, living=living), workspaces)
