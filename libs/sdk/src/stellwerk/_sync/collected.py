# Generated from ../_async/collected.py by scripts/generate_sync.py; do not edit.
"""What deployments were asked and answered: files of events, by hour."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from stellwerk import names
from stellwerk._sync.core import Core
from stellwerk.errors import StellwerkError
from stellwerk_protos.inference.v1 import collections_pb2, collections_pb2_grpc, endpoints_pb2
from stellwerk_protos.registry.v1 import datasets_pb2, datasets_pb2_grpc


class CollectedData:
    """The collected data of the endpoints of a workspace.

    `since` and `until` choose whole hours (UTC): those that end after the one and begin before the other.
    `deployment` and `collection` ("request", "response", or a name of the script's) are all unless given.
    """

    def __init__(self, core: Core, parent: str) -> None:
        self._core, self._parent = core, parent
        self._stub = collections_pb2_grpc.CollectionServiceStub(core.channel)

    def list(
        self,
        endpoint: str,
        *,
        deployment: str = "",
        collection: str = "",
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int | None = None,
    ) -> Sequence[collections_pb2.CollectedFile]:
        """The files, by path: deployment, collection, hour. What is newer than a minute may be missing."""
        request = collections_pb2.ListCollectedFilesRequest(
            parent=names.resource(self._parent, "endpoints", endpoint),
            deployment=deployment,
            collection=collection,
        )
        if since is not None:
            request.start_time.FromDatetime(since)
        if until is not None:
            request.end_time.FromDatetime(until)
        pages = self._core.pages(self._stub.ListCollectedFiles, request, limit)
        return [file for page in pages for file in page.files]

    def delete(
        self,
        endpoint: str,
        *,
        before: datetime,
        deployment: str = "",
        collection: str = "",
        dry_run: bool = True,
    ) -> collections_pb2.DeleteCollectedDataResponse:
        """Removes what was collected in hours that ended by `before`, for good; counts it with `dry_run`.

        Dataset versions that were made of it stay.
        """
        request = collections_pb2.DeleteCollectedDataRequest(
            parent=names.resource(self._parent, "endpoints", endpoint),
            deployment=deployment,
            collection=collection,
            validate_only=dry_run,
        )
        request.end_time.FromDatetime(before)
        total = collections_pb2.DeleteCollectedDataResponse(more=True)
        while total.more:
            some = self._core.call(self._stub.DeleteCollectedData, request)
            total.file_count += some.file_count
            total.event_count += some.event_count
            total.size_bytes += some.size_bytes
            total.more = some.more
        return total

    def set_retention(self, endpoint: str, days: int) -> endpoints_pb2.Endpoint:
        """What is older than `days` is removed from now on, without asking; 0 keeps everything."""
        name = names.resource(self._parent, "endpoints", endpoint)
        request = collections_pb2.SetDataRetentionRequest(name=name, days=days)
        return self._core.call(self._stub.SetDataRetention, request)

    def download(
        self,
        endpoint: str,
        folder: str | Path,
        *,
        deployment: str = "",
        collection: str = "",
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Sequence[collections_pb2.CollectedFile]:
        """Writes the files below `folder`, by their paths. Raises NO_COLLECTED_DATA when there are none."""
        found = self._some(endpoint, deployment, collection, since, until)
        self._core.download(self._parent, [item.file for item in found], Path(folder))
        return found

    def create_dataset(
        self,
        endpoint: str,
        name: str,
        *,
        deployment: str = "",
        collection: str = "",
        since: datetime | None = None,
        until: datetime | None = None,
        description: str = "",
        tags: Mapping[str, str] | None = None,
    ) -> datasets_pb2.DatasetVersion:
        """Registers the files as the next version of a dataset; no byte travels.

        Raises NO_COLLECTED_DATA when there are none; a version has 20,000 files at most.
        """
        found = self._some(endpoint, deployment, collection, since, until)
        request = datasets_pb2.CreateDatasetVersionRequest(
            parent=names.resource(self._parent, "datasets", name),
            description=description,
            tags=tags,
            source="/".join(part for part in ("endpoints", endpoint, deployment, collection) if part),
            files=[item.file for item in found],
        )
        stub = datasets_pb2_grpc.DatasetServiceStub(self._core.channel)
        return self._core.call(stub.CreateDatasetVersion, request)

    def _some(
        self,
        endpoint: str,
        deployment: str,
        collection: str,
        since: datetime | None,
        until: datetime | None,
    ) -> Sequence[collections_pb2.CollectedFile]:
        found = self.list(endpoint, deployment=deployment, collection=collection, since=since, until=until)
        if not found:
            raise StellwerkError(
                "NO_COLLECTED_DATA",
                f"Nothing that endpoint {endpoint} has collected matches.",
                "See `stellwerk endpoint data list`; new data arrives within about a minute. A deployment "
                "collects what `--collect` names.",
                code="NOT_FOUND",
            )
        return found
