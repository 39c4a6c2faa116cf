"""Batch jobs in MongoDB, each with its mini-batches, which are written in the transaction that creates it."""

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Collection as Container
from datetime import datetime

from pymongo import ASCENDING, IndexModel
from pymongo.errors import DuplicateKeyError

from stellwerk_inference.batches import domain, requests
from stellwerk_inference.batches.mini_batches.store import MiniBatchStore
from stellwerk_inference.collected.store import CollectedStore
from stellwerk_inference.store import Store
from stellwerk_platform import names
from stellwerk_platform.documents import Document
from stellwerk_platform.journal import Fact
from stellwerk_platform.mongo import Collection, Database, Session, Transaction, missing
from stellwerk_platform.workspace_data import begins_with
from stellwerk_protos.common.v1.common_pb2 import File
from stellwerk_protos.inference.v1 import batches_pb2 as pb
from stellwerk_protos.inference.v1 import endpoints_pb2


class BatchStore:
    """The jobs, and `mini_batches`. `store` has the endpoints, whose locks jobs are created under.

    `collected` lets the blobs go that nobody needs any more.
    """

    def __init__(self, database: Database, store: Store, collected: CollectedStore) -> None:
        self._database = database
        self._store = store
        self._collected = collected
        self.jobs = Collection(
            database,
            "batch_jobs",
            pb.BatchJob,
            indexes=[
                IndexModel([("parent", ASCENDING), ("create_time", ASCENDING)]),
                IndexModel([("deployment", ASCENDING), ("state", ASCENDING)]),
                IndexModel([("state", ASCENDING)]),
            ],
            extra=lambda job: {"parent": names.parent_of(job.name)},
        )
        self.mini_batches = MiniBatchStore(database)

    async def open(self) -> None:
        """Creates collections and indexes."""
        await self.jobs.open()
        await self.mini_batches.open()

    async def create(
        self, job: pb.BatchJob, pieces: Sequence[Sequence[File]], request_id: str, deployment_id: str
    ) -> pb.BatchJob:
        """Stores a job with its mini-batches; the first answer for a repeated request.

        Raises what `requests.choose` and `check_room` do, `AlreadyExists`, and `Aborted` if another rollout
        serves by now.
        """
        endpoint = names.parent_of(job.name)

        async def work(tx: Transaction) -> pb.BatchJob:
            current = await self._store.endpoints.get(endpoint, tx.session)
            existing = await self._store.deployments_of(endpoint, tx.session)
            requests.check_same(job, requests.choose(current, existing, deployment_id))
            waiting = await self._count_open(endpoint, tx.session)
            created = await self._create_in(tx, job, current, request_id)
            # After it, so that a request that is repeated meets its own job first.
            requests.check_room(endpoint, waiting)
            await self.mini_batches.add_in(tx, job.name, pieces)
            return created

        try:
            return await self._store.change(endpoint, work)
        except DuplicateKeyError:
            return await self.jobs.existing(job, request_id)

    async def _create_in(
        self, tx: Transaction, job: pb.BatchJob, endpoint: endpoints_pb2.Endpoint, request_id: str
    ) -> pb.BatchJob:
        """Stores a job, in the place of one of an earlier endpoint of that name if there is one."""
        fact = Fact("created", "REQUESTED")
        earlier = await self.jobs.find(job.name, tx.session)
        if earlier is None or earlier.state not in domain.ENDED or not domain.is_earlier(earlier, endpoint):
            return await self.jobs.create_in(tx, job, fact, request_id)
        await self.mini_batches.remove_in(tx, job.name)
        return await self._store.replace_in(tx, self.jobs, job, fact, request_id)

    async def referenced(self, workspace: str, digests: Sequence[str]) -> set[str]:
        """Those of the blobs that are results of jobs which have not ended: no dataset has them yet."""
        jobs = await self.mini_batches.jobs_with(workspace, digests)
        if not jobs:
            return set()
        living = set(await self.open_names(workspace))
        return {digest for digest, users in jobs.items() if users & living}

    async def find(self, name: str) -> pb.BatchJob:
        """A job without its progress; raises `NotFound`, also for one of an earlier endpoint of that name."""
        job = await self.jobs.get(name)
        if not await self._of_now([job]):
            raise missing(pb.BatchJob, name)
        return job

    async def get(self, name: str) -> pb.BatchJob:
        """A job with its progress; raises as `find`."""
        return await self._with_progress(await self.find(name))

    async def page_jobs(self, request: pb.ListBatchJobsRequest) -> tuple[list[pb.BatchJob], str]:
        """One page with progress, newest first, and the token of the next one.

        It has less than it may where jobs of an earlier endpoint of that name are left out.
        """
        workspace, endpoint = names.parent_of(request.parent), names.id_of(request.parent)
        where: Document = {"parent": request.parent}
        if endpoint == names.WILDCARD:
            where = begins_with("parent", f"{workspace}/endpoints/")
        if request.open_only:
            where["state"] = _any_of(domain.OPEN)
        jobs, token = await self.jobs.page(
            where, request.page_size, request.page_token, key="create_time", descending=True
        )
        return [await self._with_progress(job) for job in await self._of_now(jobs)], token

    async def _of_now(self, jobs: Sequence[pb.BatchJob]) -> list[pb.BatchJob]:
        """Those of the jobs that are of the endpoints that there are now."""
        parents = sorted({names.parent_of(job.name) for job in jobs})
        found = {e.name: e for e in await self._store.endpoints.all({"_id": {"$in": parents}})}
        return [job for job in jobs if not domain.is_earlier(job, found.get(names.parent_of(job.name)))]

    async def _with_progress(self, job: pb.BatchJob) -> pb.BatchJob:
        if job.state not in domain.ENDED:
            job.progress.CopyFrom(await self.mini_batches.progress(job.name))
        return job

    async def update(self, name: str, change: Callable[[pb.BatchJob], Fact | None]) -> pb.BatchJob:
        """Applies a rule; a job that comes to need a merge gets that piece of work with it."""

        async def work(tx: Transaction) -> pb.BatchJob:
            before = await self.jobs.get(name, tx.session)
            after = await self.jobs.update_in(tx, name, change)
            came = after.state == domain.FINALIZING != before.state
            if came and domain.needs_merge(after):
                await self.mini_batches.add_merge_in(tx, name)
            if after.state in domain.ENDED and before.state not in domain.ENDED:
                await self._end_in(tx, after)
            return after

        return await self._database.commit(work)

    async def _end_in(self, tx: Transaction, job: pb.BatchJob) -> None:
        """Ends the leases of a job, so that nothing is added to it, and lets go what nobody can see."""
        await self.mini_batches.end_leases_in(tx, job.name)
        if not domain.keeps_parts(job):
            parts = await self.mini_batches.results_in(tx, job.name)
            await self._collected.let_go_in(tx, names.parent_of(job.name, 2), parts)

    async def let_go(self, request: pb.FinishMiniBatchRequest) -> None:
        """What was uploaded for a lease that is lost goes, unless something else needs it."""
        workspace = f"workspaces/{names.workspace_of(request.name)}"
        digests = sorted({file.sha256 for file in request.results})
        if digests:
            await self._database.commit(lambda tx: self._collected.let_go_in(tx, workspace, digests))

    async def open_jobs(self, session: Session | None = None, **where: str) -> list[pb.BatchJob]:
        """Those that have not ended, oldest first; `where` by `deployment` or `parent`."""
        return await self._jobs_in(domain.OPEN, session, where)

    async def working_jobs(self, deployment: str, rollout: int) -> list[pb.BatchJob]:
        """Those of which a replica may get work, oldest first."""
        wanted = {*domain.SCORING, domain.FINALIZING}
        jobs = await self._jobs_in(wanted, None, {"deployment": deployment})
        return [job for job in jobs if job.rollout == rollout]

    async def _jobs_in(
        self,
        states: Container[domain.State.ValueType],
        session: Session | None,
        where: Mapping[str, str],
    ) -> list[pb.BatchJob]:
        found = await self.jobs.all({**where, "state": _any_of(states)}, session)
        return sorted(found, key=lambda job: (job.create_time.ToDatetime(), job.name))

    async def _count_open(self, endpoint: str, session: Session) -> int:
        where = {"parent": endpoint, "state": _any_of(domain.OPEN)}
        return int(await self.jobs.raw.count_documents(where, session=session))

    async def open_names(self, workspace: str) -> list[str]:
        """The names of the jobs of a workspace that have not ended."""
        where = {**begins_with("_id", f"{workspace}/"), "state": _any_of(domain.OPEN)}
        found = self.jobs.raw.find(where, {"_id": 1})
        return [document["_id"] async for document in found]

    async def last_end(self, deployment: str) -> datetime | None:
        """When the last job of a deployment ended; None: none has."""
        where = {"deployment": deployment, "end_time": {"$exists": True}}
        async for document in self.jobs.raw.find(where, {"end_time": 1}).sort("end_time", -1).limit(1):
            return document["end_time"]  # type: ignore[no-any-return]
        return None

    async def check_none(self, tx: Transaction, deployment: str) -> None:
        """Raises `FailedPrecondition` while a job of the deployment is not over."""
        for job in await self.open_jobs(tx.session, deployment=deployment):
            raise domain.refuse_change(job.name)

    async def cancel_all(self, tx: Transaction, endpoint: str) -> None:
        """Asks all jobs of an endpoint that is being deleted to stop."""
        for job in await self.open_jobs(tx.session, parent=endpoint):
            await self.jobs.update_in(
                tx, job.name, lambda j: domain.cancel(j, "ENDPOINT_DELETED", "Its endpoint is deleted.")
            )


def _any_of(states: Container[domain.State.ValueType]) -> Document:
    return {"$in": sorted(domain.State.Name(state) for state in states)}
