"""What `runs` keeps of a workspace."""

from stellwerk_platform.documents import Document
from stellwerk_platform.errors import FailedPrecondition, NotFound
from stellwerk_platform.mongo import Database
from stellwerk_platform.names import id_of
from stellwerk_platform.workspace_data import Found, Kept, Rules, WorkspaceData
from stellwerk_platform.workspaces import Workspaces
from stellwerk_protos.runs.v1.runs_pb2 import RunState
from stellwerk_runs.ingest.streams import STREAMS, Streams
from stellwerk_runs.runs import states
from stellwerk_runs.runs.store import RunStore
from stellwerk_runs.runs.trees import Trees

_LABELS = {
    "runs": "runs",
    "experiments": "experiments",
    "metric_series": "metrics",
    "logs": "logs",
    "records": "records",
    "artifacts": "artifacts",
    "snapshots": "snapshots",
    "retention_rules": "retention rules",
}
_KEPT = (
    *(Kept("ingest_heads", "_id", f"{kind}#workspaces/{{w}}/") for kind in STREAMS),
    Kept("ingest_early", "run", "workspaces/{w}/"),
)
_TERMINAL = [RunState.Name(state) for state in states.TERMINAL]  # type: ignore[arg-type]  # a set of ints
_CANCELLABLE = [RunState.Name(state) for state in states.CANCELLABLE]  # type: ignore[arg-type]
_MOST = 1_000


def workspace_data(
    database: Database, workspaces: Workspaces, runs: RunStore, trees: Trees, streams: Streams
) -> WorkspaceData:
    """Runs with all that they said; what runs is asked to stop first."""

    async def names(where: Document) -> list[str]:
        found = runs.runs.raw.find(where, {"_id": 1}).limit(_MOST)
        return [document["_id"] async for document in found]

    async def living(workspace: str) -> list[str]:
        return await names({"workspace": id_of(workspace), "state": {"$nin": _TERMINAL}})

    async def end(workspace: str) -> None:
        for name in await names({"workspace": id_of(workspace), "state": {"$in": _CANCELLABLE}}):
            try:
                await trees.cancel(name, "services/registry", f"{workspace} is being deleted")
            except (FailedPrecondition, NotFound):
                continue  # it has ended by itself

    async def remove(workspace: str) -> Found:
        await streams.purge(workspace)
        return {}, 0

    rules = Rules(labels=_LABELS, kept=_KEPT, living=living, end=end, remove=remove)
    return WorkspaceData(database, rules, workspaces)
