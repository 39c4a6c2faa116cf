"""Runs and experiments in MongoDB."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial

from pymongo import ASCENDING, DESCENDING, IndexModel
from pymongo.errors import DuplicateKeyError

from stellwerk_platform import names
from stellwerk_platform.documents import from_document, now
from stellwerk_platform.errors import AlreadyExists, NotFound
from stellwerk_platform.journal import Fact
from stellwerk_platform.mongo import Collection, Database, Transaction, missing
from stellwerk_protos.runs.v1.runs_pb2 import RUN_KIND_INTERACTIVE, Experiment, Run, RunKind, RunState
from stellwerk_runs.runs import annotations, domain, interactive, states
from stellwerk_runs.search.store import SearchStore

log = logging.getLogger(__name__)
_KNOWN = 100_000
# Beside the message: how deep in its tree a run is (absent at the top), and how many were made its children.
_DEPTH = "depth"
_CHILDREN = "children"
_INTERACTIVE = RunKind.Name(RUN_KIND_INTERACTIVE)
_TERMINAL = [RunState.Name(state) for state in RunState.values() if state in states.TERMINAL]
Beside = Callable[[Transaction, Run], Awaitable[None]]


class Runs(Collection[Run]):
    """The runs; what searches know of a run changes in the same transaction."""

    def __init__(self, database: Database, search: SearchStore) -> None:
        newest = [("create_time", DESCENDING), ("_id", DESCENDING)]
        super().__init__(
            database,
            "runs",
            Run,
            indexes=[
                IndexModel([("workspace", ASCENDING), *newest]),
                IndexModel([("experiment", ASCENDING), *newest]),
                IndexModel([("parent_run", ASCENDING), *newest]),
                IndexModel(
                    [("creator", ASCENDING), ("state", ASCENDING)],
                    partialFilterExpression={"kind": _INTERACTIVE},
                ),
            ],
            extra=lambda run: {"workspace": names.workspace_of(run.name)},
        )
        self._search = search

    async def create_in(self, tx: Transaction, resource: Run, fact: Fact, request_id: str = "") -> Run:
        """The same, for searches too."""
        run = await super().create_in(tx, resource, fact, request_id)
        await self._search.put(run, tx.session)
        return run

    async def update_in(
        self, tx: Transaction, name: str, change: Callable[[Run], Fact | None], etag: str = ""
    ) -> Run:
        """The same, for searches too."""
        told = False

        def remember(run: Run) -> Fact | None:
            nonlocal told
            fact = change(run)
            told = fact is not None
            return fact

        run = await super().update_in(tx, name, remember, etag)
        if told:
            await self._search.put(run, tx.session)
        return run


class RunStore:
    """Runs and experiments, and the transactions that write several documents."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.search = SearchStore(database)
        self.runs = Runs(database, self.search)
        self.experiments: Collection[Experiment] = Collection(
            database,
            "experiments",
            Experiment,
            indexes=[IndexModel([("workspace", ASCENDING), ("_id", ASCENDING)])],
            extra=lambda experiment: {"workspace": names.workspace_of(experiment.name)},
        )
        # The names of runs that were removed, which are not given again (retention/store.py).
        self._removed = database.raw["removed_runs"]
        # When each was made, in ms since 1970: one of the same name may be another one by then.
        self._known: dict[str, int] = {}

    async def open(self) -> None:
        """Creates collections and indexes."""
        await self.runs.open()
        await self.search.open()
        await self.experiments.open()

    async def create(
        self, make: Callable[[], Run], request_id: str, chosen: bool, *, beside: Beside | None = None
    ) -> Run:
        """Stores the run that `make` gives, with its experiment when that is new.

        `make` is called again when the name was taken and is not the caller's choice;
        `beside` writes more in the same transaction. Returns the first answer to
        `request_id`; raises `AlreadyExists`, and what `domain.check_parent` raises.
        """
        while True:
            run = make()
            fact = states.accept(run, now())
            try:
                return await self._database.commit(partial(self._create_in, run, fact, request_id, beside))
            except DuplicateKeyError:
                # The experiment, the request or the run: whoever was faster is there now.
                if (existing := await self.runs.created_by(request_id)) is not None:
                    return existing
                if chosen and await self.runs.find(run.name) is not None:
                    raise AlreadyExists(
                        "ALREADY_EXISTS", f"{run.name} exists already.", "Choose another run id, or none."
                    ) from None

    async def _create_in(
        self, run: Run, fact: Fact, request_id: str, beside: Beside | None, tx: Transaction
    ) -> Run:
        depth = 1
        if run.parent_run:
            depth = await self._adopt_in(tx, run)
        if await self.experiments.find(run.experiment, tx.session) is None:
            experiment = Experiment(name=run.experiment, creator=run.creator)
            await self.experiments.create_in(tx, experiment, Fact("created", "FIRST_RUN"))
        if await self._removed.find_one({"_id": run.name}, {"_id": 1}, session=tx.session) is not None:
            raise AlreadyExists(
                "RUN_REMOVED", f"There was a run {run.name}; it has been removed.", "Choose another run id."
            )
        created = await self.runs.create_in(tx, run, fact, request_id)
        if depth > 1:
            await self.runs.raw.update_one({"_id": run.name}, {"$set": {_DEPTH: depth}}, session=tx.session)
        if beside is not None:
            await beside(tx, created)
        return created

    async def _adopt_in(self, tx: Transaction, run: Run) -> int:
        """Makes the run a child of its parent and returns its depth; raises `NotFound`, `FailedPrecondition`.

        The parent's document is written, so that whoever cancels the parent at the same
        moment comes before, and there is no child, or after, and finds it.
        """
        document = await self.runs.raw.find_one_and_update(
            {"_id": run.parent_run}, {"$inc": {_CHILDREN: 1}}, session=tx.session
        )
        if document is None:
            raise _no_run(run.parent_run)
        parent, depth = from_document(Run, document), int(document.get(_DEPTH, 1))
        domain.check_parent(parent, depth)
        run.root_run = parent.root_run or parent.name
        return depth + 1

    async def annotate_in(
        self, tx: Transaction, run: str, params: Mapping[str, str], tags: Mapping[str, str]
    ) -> None:
        """Adds what the script logged, in the caller's transaction; again, nothing changes.

        The first value of a parameter stays. What cannot be kept is left out and said in
        the journal (`run.annotated`, LOGGED_IN_PART) or, when nothing was new, in the log.
        Raises `NotFound`.
        """

        def change(found: Run) -> Fact | None:
            fact = annotations.annotate(found, params, tags)
            if fact is None:
                log.info("%s: %d parameters and tags change nothing", run, len(params) + len(tags))
            return fact

        await self.runs.update_in(tx, run, change)

    async def annotate(self, run: str, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """The same in a transaction of its own."""
        await self._database.commit(lambda tx: self.annotate_in(tx, run, params, tags))

    async def check(self, name: str) -> int:
        """When the run was made, in ms since 1970; runs that exist are remembered. Raises `NotFound`."""
        if (known := self._known.get(name)) is not None:
            return known
        document = await self.runs.raw.find_one({"_id": name}, {"create_time": 1})
        if document is None:
            raise _no_run(name)
        if len(self._known) >= _KNOWN:
            self._known.clear()
        self._known[name] = round(document["create_time"].timestamp() * 1_000)
        return self._known[name]

    def forget(self, name: str) -> None:
        """Says that the run is gone."""
        self._known.pop(name, None)

    def forget_all(self, workspace: str) -> None:
        """Says that all runs of `workspaces/demo` are gone."""
        for name in [name for name in self._known if name.startswith(f"{workspace}/")]:
            del self._known[name]

    async def interactive_of(self, creator: str) -> list[str]:
        """Up to 100 interactive runs that `creator` made and that have not ended."""
        where = {"creator": creator, "kind": _INTERACTIVE, "state": {"$nin": _TERMINAL}}
        return [found["_id"] for found in await self.runs.raw.find(where, {"_id": 1}).to_list(100)]

    async def script_of(self, name: str) -> Run | None:
        """The run in whose script an interactive run was made; None for one that a person made."""
        document = await self.runs.raw.find_one({"_id": name}, {"creator": 1})
        creator = str(document.get("creator", "")) if document else ""
        return await self.runs.find(creator) if "/runs/" in creator else None

    async def was_lost(self, name: str, lately: timedelta) -> bool:
        """Whether somebody else said lately that the run has ended, because its process did not."""
        document = await self.runs.raw.find_one({"_id": name}, {"reason.code": 1, "end_time": 1})
        if document is None or document.get("reason", {}).get("code") not in interactive.LOST:
            return False
        ended = document.get("end_time")
        return ended is not None and ended > datetime.now(UTC) - lately

    async def is_over(self, name: str) -> bool:
        """Whether the run is in a terminal state; raises `NotFound`."""
        document = await self.runs.raw.find_one({"_id": name}, {"state": 1})
        if document is None:
            raise _no_run(name)
        return states.is_terminal(RunState.Value(document["state"]))


def _no_run(name: str) -> NotFound:
    return missing(Run, name)
