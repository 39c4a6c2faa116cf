"""A replica works on mini-batches, whoever is away, dies or hangs on the way.

The scoring server is the real one. Inference is a stand-in that keeps the lease protocol, because the real
one cannot be told to lose a lease or to refuse an answer; the blob store is a stand-in that can fail between
two steps. Both real ones are in tests/system/test_batch.py and tests/faults.
"""

import asyncio
import csv
import hashlib
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import dedent
from typing import Any

import grpc
import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.scorer.tests.support import BARE_PYTHON, Keys
from stellwerk_agent.batches import Batches
from stellwerk_agent.blobs import Uploaded
from stellwerk_agent.failure import StepFailed
from stellwerk_agent.merging import concatenate
from stellwerk_agent.scoring import Scoring, ScoringFailed
from stellwerk_launcher import ports
from stellwerk_platform.errors import NotFound
from stellwerk_protos.common.v1 import common_pb2
from stellwerk_protos.compute.v1 import workloads_pb2
from stellwerk_protos.inference.v1 import batches_pb2 as pb
from stellwerk_protos.inference.v1 import batches_pb2_grpc
from stellwerk_protos.secrets.v1 import tokens_pb2_grpc
from stellwerk_scorer.worker import rows

REPLICA = "workspaces/demo/endpoints/digits/deployments/blue/replicas/r1"
JOB = "workspaces/demo/endpoints/digits/jobs/one"
LEASE_SECONDS = 30
CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=5)
TABLES = st.lists(
    st.lists(st.dictionaries(CELL, CELL, min_size=1, max_size=3), min_size=1, max_size=3), max_size=4
)
SCRIPT = """
    import os, time
    from pathlib import Path

    def init():
        pass

    def dies_once(mark):
        if not mark.exists():
            mark.touch()
            os._exit(1)
        return 7

    def waits_for(gate):
        while not gate.exists():
            time.sleep(0.01)
        return 3

    def run(mini_batch):
        print("scores", *(os.path.basename(path) for path in mini_batch), flush=True)
        return [eval(Path(path).read_text()) for path in mini_batch]
"""


class Store:
    """The blob store; `fail` raises for some step, or waits."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.fail: Callable[[str], Any] = lambda step: None

    def put(self, path: str, content: bytes) -> common_pb2.File:
        digest = hashlib.sha256(content).hexdigest()
        self.blobs[digest] = content
        return common_pb2.File(path=path, sha256=digest, size_bytes=len(content))

    def apart(self, cache: Path) -> "Store":
        return self

    async def fetch(
        self, workspace: str, files: Sequence[common_pb2.File], target: Path, *, writable: bool
    ) -> None:
        self.fail("fetch")
        for file in files:
            place = target / file.path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(self.blobs[file.sha256])

    async def upload(self, workspace: str, files: Mapping[str, Path]) -> Uploaded:
        self.fail("upload")
        self.blobs |= {digest: path.read_bytes() for digest, path in files.items()}
        return Uploaded(len(files), set())


@dataclass
class Item:
    """A mini-batch, or the merge."""

    lease: pb.MiniBatchLease
    is_open: bool = True
    is_leased: bool = False
    failures: list[common_pb2.Reason] = field(default_factory=list)
    finish: pb.FinishMiniBatchRequest | None = None


class Inference(batches_pb2_grpc.BatchServiceServicer):
    """Leases items, first come first served, and notes what becomes of them."""

    def __init__(self, store: Store, token: str) -> None:
        self.items: list[Item] = []
        self.changed = asyncio.Condition()
        self.leases = 0
        self.refuses: list[grpc.StatusCode] = []
        self._store = store
        self._token = token

    async def add(self, *texts: str, **settings: Any) -> Item:
        """A mini-batch whose files have the texts."""
        index = len(self.items)
        lease = pb.MiniBatchLease(name=f"{JOB}/miniBatches/{index}", token=self._token)
        for number, text in enumerate(texts):
            lease.files.append(self._store.put(f"folder/{index}-{number}.txt", text.encode()))
        lease.settings.CopyFrom(workloads_pb2.BatchSettings(**settings))
        return await self.append(lease)

    async def append(self, lease: pb.MiniBatchLease) -> Item:
        lease.token = self._token
        item = Item(lease)
        async with self.changed:
            self.items.append(item)
            self.changed.notify_all()
        return item

    async def until(self, holds: Callable[[], bool]) -> None:
        """Waits until something holds of the items."""
        async with self.changed:
            await self.changed.wait_for(holds)

    async def lose(self, item: Item) -> None:
        """Nobody wants it any more."""
        async with self.changed:
            item.lease.lease_id, item.is_open = "another's", False
            self.changed.notify_all()

    def _next(self, held: Sequence[str]) -> Item | None:
        waiting = (item for item in self.items if item.is_open)
        return next((item for item in waiting if not item.is_leased or item.lease.lease_id not in held), None)

    async def LeaseMiniBatch(
        self, request: pb.LeaseMiniBatchRequest, context: Any
    ) -> pb.LeaseMiniBatchResponse:
        assert request.parent == REPLICA
        async with self.changed:
            try:
                async with asyncio.timeout(5):
                    await self.changed.wait_for(lambda: self._next(request.held_lease_ids) is not None)
            except TimeoutError:
                return pb.LeaseMiniBatchResponse()
            item = self._next(request.held_lease_ids)
            assert item is not None
            self.leases += 1
            item.is_leased, item.lease.lease_id = True, f"lease-{self.leases}"
            item.lease.expire_time.GetCurrentTime()
            item.lease.expire_time.seconds += LEASE_SECONDS
            self.changed.notify_all()
            return pb.LeaseMiniBatchResponse(lease=item.lease)

    async def _item(self, request: Any, context: Any) -> Item:
        assert request.replica == REPLICA
        (item,) = (item for item in self.items if item.lease.name == request.name)
        if item.lease.lease_id != request.lease_id:
            await context.abort(grpc.StatusCode.ABORTED, "another has it")
        return item

    async def RenewMiniBatch(
        self, request: pb.RenewMiniBatchRequest, context: Any
    ) -> pb.RenewMiniBatchResponse:
        item = await self._item(request, context)
        async with self.changed:
            with suppress(TimeoutError):
                async with asyncio.timeout(request.wait_seconds):
                    await self.changed.wait_for(lambda: item.lease.lease_id != request.lease_id)
        await self._item(request, context)
        return pb.RenewMiniBatchResponse(expire_time=item.lease.expire_time)

    async def FinishMiniBatch(
        self, request: pb.FinishMiniBatchRequest, context: Any
    ) -> pb.FinishMiniBatchResponse:
        item = await self._item(request, context)
        if self.refuses:
            await context.abort(self.refuses.pop(), "not like this")
        async with self.changed:
            item.is_leased = False
            if request.HasField("failure"):
                item.failures.append(request.failure)
                item.is_open = len(item.failures) < 2
            else:
                item.finish, item.is_open = request, False
            self.changed.notify_all()
        return pb.FinishMiniBatchResponse()

    async def _refuse(self, request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no business of an agent")

    CreateBatchJob = GetBatchJob = ListBatchJobs = CancelBatchJob = _refuse

    async def WatchBatchJob(self, request: Any, context: Any) -> AsyncIterator[pb.BatchJob]:
        yield await self._refuse(request, context)

    async def ListMiniBatches(
        self, request: pb.ListMiniBatchesRequest, context: Any
    ) -> pb.ListMiniBatchesResponse:
        """Pages of two."""
        assert (request.parent, request.state) == (JOB, pb.MINI_BATCH_STATE_SUCCEEDED)
        done = [item for item in self.items if item.finish is not None]
        start = int(request.page_token or 0)
        answer = pb.ListMiniBatchesResponse(next_page_token=str(start + 2) if len(done) > start + 2 else "")
        for item in done[start : start + 2]:
            finish = item.finish
            assert finish is not None
            answer.mini_batches.add(
                name=finish.name,
                results=finish.results,
                succeeded_file_count=finish.succeeded_file_count,
                row_count=finish.row_count,
            )
        return answer


@dataclass
class Replica:
    """A scoring server on a node, and what an agent needs to work with it."""

    folder: Path
    scorer: asyncio.subprocess.Process
    server: httpx.AsyncClient
    inference: Inference
    store: Store
    address: str
    log: Path

    @asynccontextmanager
    async def agent(self, workers: int = 1) -> AsyncIterator[Batches]:
        """An agent that works; at the end it goes without a word, as one that was killed."""
        async with grpc.aio.insecure_channel(self.address) as channel:
            stub = batches_pb2_grpc.BatchServiceStub(channel)
            store: Any = self.store
            scoring = Scoring(
                self.folder, store, stub, self.server, lambda: self.scorer.returncode is not None
            )
            settings = workloads_pb2.BatchSettings(max_concurrency_per_replica=workers)
            batches = Batches(REPLICA, settings, self.folder, stub, scoring)
            running = asyncio.create_task(batches.run())
            try:
                yield batches
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
                await batches.drop()

    async def prints(self, text: str, *, count: int = 1) -> None:
        """Waits until the script has printed something so often."""
        await self.until(lambda: self.log.read_text().count(text) >= count)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Waits for what happens in another process or on the disk."""
        while not holds():  # noqa: ASYNC110  # neither can set an event of ours
            await asyncio.sleep(0.02)

    def content(self, item: Item) -> list[str]:
        assert item.finish is not None
        return [self.store.blobs[file.sha256].decode() for file in item.finish.results]


@asynccontextmanager
async def serving(address: str, inference: Inference) -> AsyncIterator[None]:
    server = grpc.aio.server()
    batches_pb2_grpc.add_BatchServiceServicer_to_server(inference, server)
    server.add_insecure_port(address)
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)


@asynccontextmanager
async def keys() -> AsyncIterator[Keys]:
    service, server = Keys(), grpc.aio.server()
    tokens_pb2_grpc.add_TokenServiceServicer_to_server(service, server)
    service.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield service
    finally:
        await server.stop(None)


@pytest.fixture
async def replica(tmp_path: Path) -> AsyncIterator[Replica]:
    """Two workers; inference is started by the test's `serving`, or by `started`."""
    (tmp_path / "score.py").write_text(dedent(SCRIPT))
    chosen = ports.choose(["http", "grpc", "inference"], {})
    http = f"127.0.0.1:{chosen['http']}"
    log = tmp_path / "log"
    async with keys() as issuer, httpx.AsyncClient(base_url=f"http://{http}", trust_env=False) as server:
        with log.open("wb") as output:
            scorer = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "stellwerk_scorer"),
                stdout=output,
                stderr=output,
                env={
                    **{
                        name: value for name, value in os.environ.items() if not name.startswith("STELLWERK_")
                    },
                    "STELLWERK_SCORER_HTTP_LISTEN": http,
                    "STELLWERK_SCORER_GRPC_LISTEN": f"127.0.0.1:{chosen['grpc']}",
                    "STELLWERK_SCORER_PYTHON": BARE_PYTHON,
                    "STELLWERK_SCORER_SCRIPT": str(tmp_path / "score.py"),
                    "STELLWERK_SECRETS_ADDRESS": issuer.address,
                    "STELLWERK_SCORER_BATCH_FOLDER": str(tmp_path / "batch"),
                    "STELLWERK_SCORER_WORKERS": "2",
                },
            )
        store = Store()
        inference = Inference(store, issuer.token())
        address = f"127.0.0.1:{chosen['inference']}"
        made = Replica(tmp_path / "batch", scorer, server, inference, store, address, log)
        try:
            await made.prints("ready (worker 2)")
            yield made
        finally:
            if scorer.returncode is None:
                scorer.kill()
            await scorer.wait()


@pytest.fixture
async def started(replica: Replica) -> AsyncIterator[Replica]:
    """A replica whose inference answers."""
    async with serving(replica.address, replica.inference):
        yield replica


async def test_files_are_scored_and_the_results_delivered(started: Replica) -> None:
    inference = started.inference
    first = await inference.add("'a'", "'b'")
    by_file = await inference.add("[1, 2]", "None", output_action=workloads_pb2.BATCH_OUTPUT_ACTION_BY_FILE)
    lines = await inference.add("1", output_file_name="rows.jsonl")
    failed = await inference.add("1 / 0")
    async with started.agent(workers=2):
        await inference.until(lambda: not any(item.is_open for item in inference.items))
    assert started.content(first) == ["prediction\na\nb\n"]
    assert first.finish is not None
    assert (first.finish.succeeded_file_count, first.finish.row_count) == (2, 2)
    assert first.finish.results[0].path == "predictions.csv"
    assert started.content(by_file) == ["[1, 2]"]
    assert by_file.finish is not None
    assert by_file.finish.results[0].path == "folder/1-0.txt.json"
    assert by_file.finish.succeeded_file_count == 1
    assert started.content(lines) == ['{"prediction": 1}\n']
    # Why it failed is told each time.
    assert [reason.code for reason in failed.failures] == ["SCRIPT_ERROR"] * 2
    assert "ZeroDivisionError" in failed.failures[0].message
    assert "`stellwerk deployment logs digits blue --replica r1`" in failed.failures[0].cure
    assert not list(started.folder.iterdir())


async def test_a_worker_that_dies_costs_a_try(started: Replica, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    item = await started.inference.add(f"dies_once(Path({str(mark)!r}))")
    async with started.agent():
        await started.inference.until(lambda: not item.is_open)
    assert [reason.code for reason in item.failures] == ["WORKER_DIED"]
    assert started.content(item) == ["prediction\n7\n"]


async def test_work_goes_on_while_inference_is_away(replica: Replica, tmp_path: Path) -> None:
    """The result arrives when it is back, and is made once."""
    gate = tmp_path / "gate"
    async with serving(replica.address, replica.inference), replica.agent():
        item = await replica.inference.add(f"waits_for(Path({str(gate)!r}))")
        await replica.prints("scores 0-0.txt")
    # Both are gone now: the agent as well, so that another one takes it up.
    async with replica.agent():
        async with serving(replica.address, replica.inference):
            await replica.prints("scores 0-0.txt", count=2)
        gate.touch()
        await replica.until(lambda: not list(replica.folder.iterdir()))
        async with serving(replica.address, replica.inference):
            await replica.inference.until(lambda: not item.is_open)
    assert item.failures == []
    assert replica.content(item) == ["prediction\n3\n"]
    assert replica.inference.leases == 2


async def test_what_was_lost_is_dropped_and_ends_in_the_worker(started: Replica) -> None:
    lost = await started.inference.add("time.sleep(600)")
    async with started.agent():
        await started.prints("scores 0-0.txt")
        await started.inference.lose(lost)
        following = await started.inference.add("5")
        await started.inference.until(lambda: not following.is_open)
    await started.prints("ready (worker 3)")
    assert started.content(following) == ["prediction\n5\n"]
    assert (lost.finish, lost.failures) == (None, [])


async def test_the_node_tells_what_it_cannot_do(started: Replica) -> None:
    """What the store refuses is a failure with a reason, and the node lets others try first."""
    steps: list[str] = []

    def fail(step: str) -> None:
        steps.append(step)
        if len(steps) == 1:
            raise NotFound("BLOB_NOT_FOUND", "It is gone.", "Bring it again.")
        if len(steps) == 3:
            raise StepFailed("BLOB_STORE_FULL", "No room.", "Submit the run again.")

    started.store.fail = fail
    item = await started.inference.add("1")
    async with started.agent() as batches:
        await started.inference.until(lambda: not item.is_open)
        assert batches._rest_seconds > 2
    assert [reason.code for reason in item.failures] == ["BLOB_NOT_FOUND", "BLOB_STORE_FULL"]
    assert "run" not in item.failures[1].cure


async def test_a_result_that_is_refused_is_a_failure(started: Replica) -> None:
    started.inference.refuses.append(grpc.StatusCode.INVALID_ARGUMENT)
    item = await started.inference.add("1")
    async with started.agent():
        await started.inference.until(lambda: not item.is_open)
    assert [reason.code for reason in item.failures] == ["UPSTREAM_INVALID_ARGUMENT"]
    assert started.content(item) == ["prediction\n1\n"]


@pytest.mark.parametrize("said", ["predictions.csv", "pipe", "folder/token", "../../token", "{token}"])
async def test_nothing_but_results_leaves_the_node(said: str, tmp_path: Path) -> None:
    """A script may lay links and pipes where results are looked for, or answer in the server's place."""
    token = tmp_path / "token"
    token.write_text("not for others")

    def answer(request: httpx.Request) -> httpx.Response:
        results = tmp_path / "batch" / "one" / "results"
        results.mkdir()
        (results / "predictions.csv").symlink_to(token)
        (results / "folder").symlink_to(tmp_path)
        os.mkfifo(results / "pipe")
        files = [said.format(token=token)]
        return httpx.Response(200, json={"succeeded_file_count": 1, "row_count": 1, "files": files})

    store: Any = Store()
    lease = pb.MiniBatchLease(name=f"{JOB}/miniBatches/0", files=[store.put("0.txt", b"1")])
    before, finish, stub = dict(store.blobs), pb.FinishMiniBatchRequest(), Any
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://scorer") as server:
        scoring = Scoring(tmp_path / "batch", store, stub, server, lambda: False)  # type: ignore[arg-type]
        with pytest.raises(ScoringFailed) as failure:
            await scoring.score(lease, "one", finish)
    assert failure.value.reason.code == "RESULT_UNSAFE"
    assert store.blobs == before


async def test_the_results_are_put_together_in_the_order_of_the_input(started: Replica) -> None:
    inference = started.inference
    texts = ["{'x': 1}", "{'x': 2, 'y': 'a\\nb'}", "None", "{'x': 4}", "{'y': 5}"]
    for text in texts:
        await inference.add(text)
    async with started.agent(workers=2):
        await inference.until(lambda: not any(item.is_open for item in inference.items))
        merge = await inference.append(
            pb.MiniBatchLease(name=f"{JOB}/miniBatches/merge", merge_into="all.csv")
        )
        await inference.until(lambda: not merge.is_open)
    assert merge.failures == []
    assert started.content(merge) == ['x,y\n1,\n2,"a\nb"\n4,\n,5\n']
    assert merge.finish is not None
    assert merge.finish.results[0].path == "all.csv"
    assert (merge.finish.succeeded_file_count, merge.finish.row_count) == (4, 4)
    assert not list(started.folder.iterdir())


@given(tables=TABLES)
@example(tables=[[{"a": "long" * 50_000}], [{"a": "1", "b": "2"}]])
def test_no_cell_is_lost_when_tables_are_put_together(tables: list[list[dict[str, str]]]) -> None:
    """Whatever the cells and the columns are called."""
    with TemporaryDirectory() as folder:
        parts = []
        for number, table in enumerate(tables):
            rows.write_table(folder, f"{number}.csv", table, "prediction")
            parts.append(Path(folder, f"{number}.csv"))
        whole = Path(folder, "whole.csv")
        concatenate(parts, whole)
        with open(whole, encoding="utf-8", newline="") as file:
            found = list(csv.DictReader(file))
    expected = [row for table in tables for row in table]
    assert [{name: cell for name, cell in row.items() if cell} for row in found] == expected


async def test_what_is_under_way_is_delivered_when_the_server_has_ended(started: Replica) -> None:
    """A replica that stops: its server drains, and the agent delivers what came of it."""
    arrived, gate = asyncio.Event(), asyncio.Event()
    done = await started.inference.add("1")
    upload = started.store.upload

    async def slow(workspace: str, files: Mapping[str, Path]) -> Uploaded:
        arrived.set()
        await gate.wait()
        return await upload(workspace, files)

    started.store.upload = slow  # type: ignore[method-assign]  # holds it up
    async with started.agent(workers=2) as batches:
        await arrived.wait()
        cut = await started.inference.add("time.sleep(600)")
        await started.prints("scores 1-0.txt")
        started.scorer.kill()
        await started.scorer.wait()
        gate.set()
        await batches.finish()
    assert started.content(done) == ["prediction\n1\n"]
    # Nobody says that it failed: its lease runs out.
    assert (cut.finish, cut.failures) == (None, [])
