"""`kill -9` of the service between any two steps: nothing that was sent is missing or double.

The service is a child process that dies at a named place; a sender that keeps its
own record sends on from its last answer, as the agent does. `registry` and `compute`
play no part here and do not run.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import fields

import grpc
import pytest
import pytest_asyncio

from services.runs.tests.support import (
    STREAMS,
    Client,
    eventually,
    metrics,
    points,
    record_of,
    records,
    settings_of,
    text,
    values,
)
from services.secrets.tests.support import Secrets
from stellwerk_launcher import ports
from stellwerk_launcher.testing import Servers, plaintext_command
from stellwerk_platform.auth import CallerCredentials
from stellwerk_platform.bus import Bus
from stellwerk_platform.documents import now
from stellwerk_platform.grpc_client import connect
from stellwerk_platform.journal import Fact, entry
from stellwerk_platform.mongo import Database
from stellwerk_protos.common.v1.common_pb2 import File
from stellwerk_protos.compute.v1.computes_pb2 import ALLOCATION_STATE_SUCCEEDED, Allocation
from stellwerk_protos.runs.v1 import logs_pb2, metrics_pb2, runs_pb2
from stellwerk_protos.runs.v1.ingest_pb2 import RECORD_KIND_PARAM, AppendRequest, Record
from stellwerk_protos.runs.v1.runs_pb2 import RUN_STATE_COMPLETED
from stellwerk_runs.artifacts.store import ArtifactStore
from stellwerk_runs.config import RunsSettings
from stellwerk_runs.ingest.store import IngestStore, Message
from stellwerk_runs.logs.store import LogStore
from stellwerk_runs.metrics.store import MetricStore
from stellwerk_runs.records.store import RecordStore
from stellwerk_runs.retention.store import RemovalStore
from stellwerk_runs.runs.store import RunStore

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]
RUN = "workspaces/demo/runs/steady-oak-000001"
# Where the service dies, the how-manieth time it comes there; the last life has no end.
LIVES = (
    "ingest.stored:3",
    "writer.received:3",
    "writer.before_commit:3",
    "writer.committed:3",
    "writer.acknowledged:3",
    "",
)
BATCH = 40


class Child:
    """The service, started anew whenever it has died, with the next failpoint."""

    def __init__(self, settings: RunsSettings, lives: Sequence[str] = LIVES) -> None:
        self._settings = settings
        self._lives = lives
        self._process: asyncio.subprocess.Process | None = None
        self.deaths: list[int] = []

    def _environment(self, failpoint: str) -> dict[str, str]:
        variables = {
            f"STELLWERK_{field.name.upper()}": str(getattr(self._settings, field.name))
            for field in fields(self._settings)
        }
        return {**os.environ, **variables, "STELLWERK_FAILPOINT": failpoint}

    async def live(self) -> None:
        """All lives, one after the other."""
        for failpoint in self._lives:
            self._process = await asyncio.create_subprocess_exec(
                *plaintext_command("runs", "RunsSettings"),
                env=self._environment(failpoint),
                stderr=asyncio.subprocess.DEVNULL,
            )
            self.deaths.append(await self._process.wait())

    async def stop(self) -> None:
        """Ends the last life."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            await self._process.wait()


@pytest_asyncio.fixture
async def secrets(servers: Servers) -> AsyncIterator[Secrets]:
    """A namespace with nothing but `secrets`."""
    secrets = Secrets(servers)
    async with secrets.run():
        yield secrets
    async with secrets.database() as database:
        for service in ("secrets", "runs"):
            await database.client.drop_database(f"{secrets.namespace}_{service}")


@asynccontextmanager
async def submitted(
    settings: RunsSettings, state: "runs_pb2.RunState.ValueType" = runs_pb2.RUN_STATE_STARTING
) -> AsyncIterator[Bus]:
    """The run in the store, without those who would check it, and the bus of the namespace."""
    database = Database(settings.mongodb_uri, settings.namespace, "runs")
    await database.open()
    store = RunStore(database)
    await store.open()
    run = runs_pb2.Run(name=RUN, experiment="workspaces/demo/experiments/e", creator="users/owner")
    await store.create(lambda: run, "", chosen=True)
    if state != runs_pb2.RUN_STATE_STARTING:
        name = runs_pb2.RunState.Name(state)
        await store.runs.raw.update_one({"_id": RUN}, {"$set": {"state": name}})
    database.close()
    async with Bus.connect(settings.nats_url, settings.namespace, "test") as bus:
        yield bus
        for stream in STREAMS:
            await bus.jetstream.delete_stream(bus.names.stream(stream))


async def send_all(client: Client, child: "asyncio.Task[None]", lives: Child) -> tuple[list[float], bytes]:
    """Sends until the last life has acknowledged some; returns what was sent.

    Several batches are under way at a time, and after a failure all of them are sent
    again, cut differently.
    """
    sent: list[float] = []
    log, rounds_of_last_life, tries = b"", 0, 0
    while rounds_of_last_life < 5:
        more = [float(len(sent) + n) for n in range(BATCH)]
        lines = b"".join(b"line %d\n" % value for value in more)
        while True:
            assert not child.done(), lives.deaths
            tries += 1
            try:
                await client.append(*cut(more, lines, len(sent), len(log), 3 + tries % 5))
                break
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE:
                    raise
                await back(client, child)
        sent, log = sent + more, log + lines
        rounds_of_last_life += len(lives.deaths) == len(LIVES) - 1
    return sent, log


async def back(client: Client, child: "asyncio.Task[None]") -> None:
    """Returns when the next life answers: trying at once took the service the core that it starts on."""
    ready = asyncio.create_task(client.channel.channel_ready())
    await asyncio.wait({child, ready}, return_when=asyncio.FIRST_COMPLETED)
    ready.cancel()


def cut(more: list[float], lines: bytes, first: int, offset: int, size: int) -> list[AppendRequest]:
    """The points and lines in requests of `size` points and four times as many bytes."""
    requests = [
        metrics(RUN, "loss", points(more[n : n + size], first + n), first + n)
        for n in range(0, len(more), size)
    ]
    rows = [record_of(str(int(value))) for value in more]
    rows[0] = Record(name=f"p{first}", kind=RECORD_KIND_PARAM, value=str(first))
    requests += [records(RUN, *rows[n : n + size], first=first + n) for n in range(0, len(rows), size)]
    return requests + [text(RUN, lines[n : n + 4 * size], offset + n) for n in range(0, len(lines), 4 * size)]


@asynccontextmanager
async def as_service(settings: RunsSettings, secrets: Secrets) -> AsyncIterator[Client]:
    """Stubs that show the token of a service: there is no registry that would know an owner's role."""
    servers = secrets.servers
    async with secrets.channel() as anonymous:
        login = CallerCredentials(anonymous, servers.vault_role_id, servers.vault_secret_id)
        async with connect(settings.listen, login) as channel:
            yield Client(channel)


async def test_killed_at_every_step_it_loses_and_doubles_nothing(servers: Servers, secrets: Secrets) -> None:
    chosen = ports.choose(["registry", "compute", "runs"], {})
    settings = settings_of(servers, secrets, chosen)
    lives = Child(settings)
    async with submitted(settings) as bus:
        child = asyncio.create_task(lives.live())
        try:
            async with as_service(settings, secrets) as client:
                sent, log = await send_all(client, child, lives)
                await end(bus)
                request = logs_pb2.ReadLogRequest(parent=RUN, follow=True)
                read = b"".join([part.data async for part in client.logs.ReadLog(request)])
                assert read == log
                history = await client.history(RUN, "loss")
                assert values(history) == sent
                assert await rows_of(client) == [str(n) for n in range(len(sent)) if n % BATCH]
                run = await client.runs.GetRun(runs_pb2.GetRunRequest(name=RUN))
                assert dict(run.params) == {f"p{n}": str(n) for n in range(0, len(sent), BATCH)}
            assert lives.deaths == [-signal.SIGKILL] * (len(LIVES) - 1)
        finally:
            await lives.stop()
            await child


async def rows_of(client: Client) -> list[str]:
    """The names of all records, in the order stored."""
    found: list[str] = []
    token = ""
    while True:
        answer = await client.metrics.ListRecords(
            metrics_pb2.ListRecordsRequest(parent=RUN, page_size=1_000, page_token=token)
        )
        found += [record.name for record in answer.records]
        token = answer.next_page_token
        if not token:
            return found


async def test_a_removal_that_is_killed_is_finished(servers: Servers, secrets: Secrets) -> None:
    chosen = ports.choose(["registry", "compute", "runs"], {})
    settings = settings_of(servers, secrets, chosen)
    digests = [f"{number:064x}" for number in range(5)]
    async with submitted(settings, RUN_STATE_COMPLETED):
        database = Database(settings.mongodb_uri, settings.namespace, "runs")
        lives = Child(settings, ("removal.deleting:2", "removal.deleting:5", "removal.deleted", ""))
        child = None
        try:
            for store in (MetricStore(database), LogStore(database), RecordStore(database)):
                await store.open()
            runs = RunStore(database)
            ingest = IngestStore(
                database, MetricStore(database), LogStore(database), RecordStore(database), runs
            )
            await ingest.open()
            for kind, piece in (
                ("metrics", metrics(RUN, "loss", points(range(10)))),
                ("logs", text(RUN, b"line")),
                ("records", records(RUN, record_of("x"))),
            ):
                await ingest.write(kind, RUN, [Message("0", piece)])
            artifacts = ArtifactStore(database)
            await artifacts.open()
            await artifacts.record(RUN, [File(path=d, sha256=d, size_bytes=1) for d in digests])
            removals = RemovalStore(database, runs)
            await removals.open()
            await removals.mark(RUN, await removals.size(RUN))
            child = asyncio.create_task(lives.live())

            async def done() -> bool:
                mark = await database.raw["removed_runs"].find_one({"_id": RUN})
                return mark is not None and "unfinished" not in mark

            await eventually(done, 250)
            assert lives.deaths == [-signal.SIGKILL] * 3
            for name in (
                "metric_series",
                "metric_chunks",
                "logs",
                "log_chunks",
                "records",
                "artifacts",
                "runs",
            ):
                assert await database.raw[name].count_documents({}) == 0, name
            # The registry is away: what it has to release is not forgotten.
            waiting = [d["_id"][-64:] async for d in database.raw["blob_releases"].find()]
            assert sorted(waiting) == digests
            # What was under way when the run was removed is dropped.
            assert await ingest.write("logs", RUN, [Message("0", text(RUN, b"late", 4))]) == set()
            assert await database.raw["log_chunks"].count_documents({}) == 0
        finally:
            await lives.stop()
            if child is not None:
                await child
            database.close()


async def end(bus: Bus) -> None:
    """Reports the end of the run's allocation, as `compute` does."""
    allocation = Allocation(
        name="workspaces/demo/allocations/a1",
        owner=RUN,
        revision=1,
        state=ALLOCATION_STATE_SUCCEEDED,
        update_time=now(),
    )
    event = entry(bus.names.namespace, "compute", allocation, Fact("succeeded", "SUCCEEDED", actor="test"))
    await bus.publish(event.subject, event.body, {"Nats-Msg-Id": event.id})
