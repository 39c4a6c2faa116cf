"""What `telemetry` keeps of a workspace, and the one place that removes from the journal."""

from stellwerk_platform.bus import Bus
from stellwerk_platform.documents import Document
from stellwerk_platform.mongo import Database
from stellwerk_platform.names import id_of
from stellwerk_platform.workspace_data import Found, Kept, Rules, WorkspaceData
from stellwerk_telemetry.dead_letters.store import DeadLetters
from stellwerk_telemetry.workspaces import Workspaces

_LABELS = {"events": "events", "activities": "activities"}
_KEPT = (
    Kept("events", "workspace", "{w}", exact=True),
    Kept("activities", "workspace", "{w}", exact=True),
)
_BATCH = 1_000


def workspace_data(
    database: Database, bus: Bus, workspaces: Workspaces, dead_letters: DeadLetters
) -> WorkspaceData:
    """The journal, its index, the activity log, and the spans of what happened there."""

    async def spans(workspace: str, *, delete: bool) -> int:
        """Spans of the traces in which something of the workspace changed."""
        traces = await _traces(database, id_of(workspace))
        count = 0
        for start in range(0, len(traces), _BATCH):
            where = {"trace_id": {"$in": traces[start : start + _BATCH]}}
            if delete:
                count += (await database.raw["spans"].delete_many(where)).deleted_count
            else:
                count += await database.raw["spans"].count_documents(where)
        return count

    async def count(workspace: str) -> Found:
        return {"spans": await spans(workspace, delete=False)}, 0

    async def remove(workspace: str) -> Found:
        workspaces.forget(id_of(workspace))
        found = {"spans": await spans(workspace, delete=True)}
        await bus.purge("ACTIVITY", "activity", id_of(workspace))
        # The index has counted these: the stream's own number is of what the index did not have yet.
        await bus.purge("JOURNAL", "journal", id_of(workspace))
        found["dead letters"] = await dead_letters.drop(workspace)
        return found, 0

    return WorkspaceData(database, Rules(labels=_LABELS, kept=_KEPT, count=count, remove=remove))


async def _traces(database: Database, workspace_id: str) -> list[str]:
    pipeline: list[Document] = [
        {"$match": {"workspace": workspace_id, "trace_id": {"$gt": ""}}},
        {"$group": {"_id": "$trace_id"}},
    ]
    return [document["_id"] async for document in database.raw["events"].aggregate(pipeline)]
