"""The gRPC face of the activity log."""

from collections.abc import AsyncIterator
from typing import Any

from stellwerk_protos.telemetry.v1 import activity_pb2 as pb
from stellwerk_protos.telemetry.v1 import activity_pb2_grpc
from stellwerk_telemetry.activities import domain
from stellwerk_telemetry.activities.store import Activities

# An export that nobody reads holds one of these in memory, and no cursor in MongoDB.
_PIECE = 500


class ActivityService(activity_pb2_grpc.ActivityServiceServicer):
    """activity.proto."""

    def __init__(self, activities: Activities) -> None:
        self._activities = activities

    async def ListActivities(
        self, request: pb.ListActivitiesRequest, context: Any
    ) -> pb.ListActivitiesResponse:
        query = domain.check_query(request.parent, request.filter)
        activities, token = await self._activities.page(query, request.page_size, request.page_token)
        return pb.ListActivitiesResponse(activities=activities, next_page_token=token)

    async def ExportActivities(
        self, request: pb.ExportActivitiesRequest, context: Any
    ) -> AsyncIterator[pb.ExportActivitiesResponse]:
        query = domain.check_query(request.parent, request.filter)
        as_csv = request.format == pb.EXPORT_FORMAT_CSV
        write = domain.csv_lines if as_csv else domain.json_lines
        # What comes while it is written is for the next export: this one has an end.
        newest, _ = await self._activities.page(query, 1, "")
        end = newest[0].id if newest else ""
        yield pb.ExportActivitiesResponse(content=domain.csv_header() if as_csv else b"")
        last = ""
        while activities := await self._activities.after(query, last, _PIECE):
            last = activities[-1].id
            yield pb.ExportActivitiesResponse(content=write(a for a in activities if a.id <= end))
            if last >= end:
                return
