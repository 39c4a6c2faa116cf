"""What `inference` keeps of a workspace."""

from stellwerk_inference.batches.store import BatchStore
from stellwerk_inference.lifecycle import Lifecycle
from stellwerk_inference.states import DELETED, DELETING, State, name_of
from stellwerk_inference.store import Store
from stellwerk_platform.errors import NotFound
from stellwerk_platform.mongo import Database
from stellwerk_platform.workspace_data import Rules, WorkspaceData
from stellwerk_platform.workspaces import Workspaces

_LABELS = {
    "endpoints": "endpoints",
    "deployments": "deployments",
    "replicas": "replicas",
    "collected_files": "files of collected data",
    "batch_jobs": "batch jobs",
    "batch_items": "mini-batches",
    "monitors": "monitors",
    "monitor_checks": "checks of monitors",
}
_MOST = 1_000


def workspace_data(
    database: Database, workspaces: Workspaces, store: Store, lifecycle: Lifecycle, batches: BatchStore
) -> WorkspaceData:
    """Endpoints with their deployments, replicas and jobs; an endpoint lives until it is deleted."""

    async def named(workspace: str, *gone: State.ValueType) -> list[str]:
        where = {"parent": workspace, "state": {"$nin": [name_of(state) for state in gone]}}
        found = store.endpoints.raw.find(where, {"_id": 1}).limit(_MOST)
        return [document["_id"] async for document in found]

    async def living(workspace: str) -> list[str]:
        return [*await named(workspace, DELETED), *await batches.open_names(workspace)]

    async def end(workspace: str) -> None:
        for name in await named(workspace, DELETING, DELETED):
            try:
                await lifecycle.delete_endpoint(name)
            except NotFound:
                continue

    return WorkspaceData(database, Rules(labels=_LABELS, living=living, end=end), workspaces)
