# Generated from ../_async/batches.py by scripts/generate_sync.py; do not edit.
"""Batch scoring: jobs that score the files of a dataset on the replicas of a batch deployment."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Unpack

from stellwerk import names, states
from stellwerk._sync.core import Core
from stellwerk.batch_options import BatchOptions, batch_settings
from stellwerk.errors import StellwerkError
from stellwerk_protos.common.v1 import common_pb2
from stellwerk_protos.inference.v1 import batches_pb2, batches_pb2_grpc
from stellwerk_protos.registry.v1 import datasets_pb2, datasets_pb2_grpc


class Batches:
    """The batch jobs of the endpoints of a workspace."""

    def __init__(self, core: Core, parent: str) -> None:
        self._core, self._parent = core, parent
        self._stub = batches_pb2_grpc.BatchServiceStub(core.channel)

    def submit(
        self,
        endpoint: str,
        input: str,
        *,
        path: str = "",
        deployment: str = "",
        name: str = "",
        output_dataset: str = "",
        tags: Mapping[str, str] | None = None,
        **options: Unpack[BatchOptions],
    ) -> "BatchJob":
        """Starts to score a dataset version (`images:3`, or `images` for the latest). Does not wait.

        `path`: only files of it whose path begins so. `deployment`: unless the one with the traffic is
        meant. `name`: the id of the job. `output_dataset`: gets the results as a version; else one named
        as the endpoint with "-results" at the end. `options` go before those of the deployment.
        """
        request = batches_pb2.CreateBatchJobRequest(
            parent=names.resource(self._parent, "endpoints", endpoint),
            job_id=name,
            input=names.version(self._parent, "datasets", input),
            input_path=path,
            deployment=names.last(deployment),
            settings=batch_settings(options) if options else None,
            output_dataset=names.resource(self._parent, "datasets", output_dataset) if output_dataset else "",
            tags=tags,
        )
        return BatchJob(self._core, self._core.call(self._stub.CreateBatchJob, request))

    def get(self, endpoint: str, job: str) -> "BatchJob":
        """Returns one job with its progress."""
        name = names.resource(names.resource(self._parent, "endpoints", endpoint), "jobs", job)
        request = batches_pb2.GetBatchJobRequest(name=name)
        return BatchJob(self._core, self._core.call(self._stub.GetBatchJob, request))

    def list(
        self, endpoint: str = "-", *, open_only: bool = False, limit: int | None = None
    ) -> Sequence["BatchJob"]:
        """The jobs of one endpoint, or of all, newest first; with `open_only` those that are not over."""
        parent = names.resource(self._parent, "endpoints", endpoint)
        request = batches_pb2.ListBatchJobsRequest(parent=parent, open_only=open_only)
        pages = self._core.pages(self._stub.ListBatchJobs, request, limit)
        return [BatchJob(self._core, job) for page in pages for job in page.batch_jobs]


class BatchJob:
    """One scoring of a dataset: `message` is its state when it was read."""

    def __init__(self, core: Core, message: batches_pb2.BatchJob) -> None:
        self._core = core
        self._stub = batches_pb2_grpc.BatchServiceStub(core.channel)
        self.message = message

    def __repr__(self) -> str:
        return f"<BatchJob {self.name} {self.state}>"

    @property
    def name(self) -> str:
        """The full name."""
        return self.message.name

    @property
    def id(self) -> str:
        """The last segment of the name."""
        return names.last(self.message.name)

    @property
    def endpoint(self) -> str:
        """The id of the endpoint."""
        return self.message.name.split("/")[3]

    @property
    def state(self) -> str:
        """`Queued`, `Running`, …"""
        return states.batch_job(self.message)

    @property
    def is_over(self) -> bool:
        """Whether it is Completed, Failed or Canceled."""
        return self.state in states.RUN_OVER

    @property
    def progress(self) -> batches_pb2.BatchProgress:
        """How many mini-batches, files and rows are done."""
        return self.message.progress

    def refresh(self) -> "BatchJob":
        """Reads the job again, in place."""
        request = batches_pb2.GetBatchJobRequest(name=self.name)
        self.message = self._core.call(self._stub.GetBatchJob, request)
        return self

    def watch(self) -> Iterator["BatchJob"]:
        """The job now and after each change, its progress about once a second; ends when it is over."""
        request = batches_pb2.WatchBatchJobRequest(name=self.name)
        for message in self._core.stream(self._stub.WatchBatchJob, request):
            if message.revision >= self.message.revision:
                self.message = message
                yield self

    def wait(self) -> "BatchJob":
        """Waits until the job is over."""
        for _ in self.watch():
            pass
        return self

    def cancel(self) -> "BatchJob":
        """Asks the job to stop; it is Canceled once no mini-batch is worked on."""
        request = batches_pb2.CancelBatchJobRequest(name=self.name)
        self.message = self._core.call(self._stub.CancelBatchJob, request)
        return self

    def mini_batches(self, *, state: str = "", limit: int | None = None) -> Sequence[batches_pb2.MiniBatch]:
        """The mini-batches in the order of the input: all, or those that are Waiting, Running, Succeeded
        or Failed."""
        request = batches_pb2.ListMiniBatchesRequest(parent=self.name, state=states.mini_batch_state(state))
        pages = self._core.pages(self._stub.ListMiniBatches, request, limit)
        return [item for page in pages for item in page.mini_batches]

    def results(self) -> datasets_pb2.DatasetVersion:
        """The dataset version with the results.

        Raises `StellwerkError`: NO_RESULTS of a job that is not Completed, or only counts.
        """
        if not self.message.output:
            self.refresh()
        if not self.message.output:
            raise self._no_results()
        stub = datasets_pb2_grpc.DatasetServiceStub(self._core.channel)
        request = datasets_pb2.GetDatasetVersionRequest(name=self.message.output)
        return self._core.call(stub.GetDatasetVersion, request)

    def download(self, folder: str | Path = ".", *, overwrite: bool = False) -> Sequence[common_pb2.File]:
        """Writes the results below `folder` and returns their files.

        What is there already as it should be is left alone. Raises as `results`, and LOCAL_FILES_DIFFER,
        without having written anything, if files of that name are there that differ; not with `overwrite`.
        """
        version = self.results()
        workspace = "/".join(self.name.split("/")[:2])
        self._core.download(workspace, version.files, Path(folder), overwrite=overwrite)
        return version.files

    def _no_results(self) -> StellwerkError:
        cures = {
            "Completed": "Its output action is summary-only: the script itself wrote what there is.",
            "Failed": f"See why: `stellwerk batch show {self.endpoint} {self.id}`.",
            "Canceled": "Submit it again.",
        }
        wait = f"Wait for it: `stellwerk batch watch {self.endpoint} {self.id}`."
        return StellwerkError(
            "NO_RESULTS",
            f"Job {self.id} is {self.state} and has no results.",
            cures.get(self.state, wait),
            code="FAILED_PRECONDITION",
        )
