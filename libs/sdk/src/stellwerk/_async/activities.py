"""The activity log: who did or tried what."""

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime

from stellwerk._async.core import AsyncCore
from stellwerk.errors import invalid
from stellwerk_protos.telemetry.v1 import activity_pb2, activity_pb2_grpc

_RESULTS = {
    "": activity_pb2.ACTIVITY_RESULT_UNSPECIFIED,
    "done": activity_pb2.ACTIVITY_RESULT_DONE,
    "denied": activity_pb2.ACTIVITY_RESULT_DENIED,
}
_FORMATS = {"csv": activity_pb2.EXPORT_FORMAT_CSV, "jsonl": activity_pb2.EXPORT_FORMAT_JSON_LINES}


class AsyncActivities:
    """The log of a workspace, or with an empty parent what lies in none."""

    def __init__(self, core: AsyncCore, parent: str) -> None:
        self._core, self._parent = core, parent
        self._stub = activity_pb2_grpc.ActivityServiceStub(core.channel)

    async def list(
        self,
        *,
        actor: str = "",
        action: str = "",
        resource: str = "",
        result: str = "",
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int | None = None,
    ) -> Sequence[activity_pb2.Activity]:
        """Activities, newest first. `result` is "done" or "denied"; `action` a text within the action;
        `resource` a full name, or one in the workspace (`runs/abc`), with what lies below it."""
        request = activity_pb2.ListActivitiesRequest(
            parent=self._parent, filter=self._filter(actor, action, resource, result, since, until)
        )
        pages = await self._core.pages(self._stub.ListActivities, request, limit)
        return [activity for page in pages for activity in page.activities]

    async def export(
        self,
        *,
        form: str = "csv",
        actor: str = "",
        action: str = "",
        resource: str = "",
        result: str = "",
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> AsyncIterator[bytes]:
        """The same, oldest first, as UTF-8 text in pieces: "csv", or "jsonl" with an object a line."""
        if form not in _FORMATS:
            raise invalid("INVALID_FORMAT", f"There is no form {form!r}.", "Use csv or jsonl.")
        request = activity_pb2.ExportActivitiesRequest(
            parent=self._parent,
            filter=self._filter(actor, action, resource, result, since, until),
            format=_FORMATS[form],
        )
        async for piece in self._core.once(self._stub.ExportActivities, request):
            yield piece.content

    def _filter(
        self,
        actor: str,
        action: str,
        resource: str,
        result: str,
        since: datetime | None,
        until: datetime | None,
    ) -> activity_pb2.ActivityFilter:
        if result not in _RESULTS:
            raise invalid("INVALID_FILTER", f"There is no result {result!r}.", "Use done or denied.")
        if resource and self._parent and not resource.startswith("workspaces/"):
            resource = f"{self._parent}/{resource}"
        given = activity_pb2.ActivityFilter(
            actor=actor, action=action, resource=resource, result=_RESULTS[result]
        )
        if since is not None:
            given.start_time.FromDatetime(since.astimezone(UTC))
        if until is not None:
            given.end_time.FromDatetime(until.astimezone(UTC))
        return given
