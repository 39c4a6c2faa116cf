"""What the registry keeps of a workspace."""

from stellwerk_platform import names
from stellwerk_platform.blobs import BlobStore
from stellwerk_platform.mongo import Database
from stellwerk_platform.workspace_data import Found, Rules, WorkspaceData
from stellwerk_platform.workspaces import Workspaces
from stellwerk_registry.blobs.store import BlobIndex

_LABELS = {
    "datasets": "dataset versions",
    "environments": "environment versions",
    "models": "model versions",
    "members": "members",
    "datastores": "datastores",
    "quotas": "quotas",
}


def workspace_data(
    database: Database, workspaces: Workspaces, index: BlobIndex, platform: BlobStore
) -> WorkspaceData:
    """Versions, blobs, datastores, members and quota; the workspace itself goes when all is gone."""

    async def count(workspace: str) -> Found:
        blobs, size_bytes = await index.count(names.id_of(workspace))
        return {"blobs": blobs}, size_bytes

    async def remove(workspace: str) -> Found:
        workspace_id = names.id_of(workspace)
        blobs, size_bytes = await index.removals.drop(workspace_id)
        # Also what was uploaded and never named to anybody.
        strays, stray_bytes = await platform.delete_all(workspace_id)
        return {"blobs": blobs, "stray objects": strays}, size_bytes + stray_bytes

    rules = Rules(
        labels=_LABELS,
        stay=("workspaces", "workspace_deletions", "migrations", "blobs"),
        count=count,
        remove=remove,
    )
    return WorkspaceData(database, rules, workspaces)
