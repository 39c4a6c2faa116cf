"""`kill -9` while the service cancels a tree and judges leases: each run is moved once, none is forgotten."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields, replace

import pytest

from services.runs.tests.support import STREAMS, Client, settings_of
from services.runs.tests.test_faults import as_service, secrets
from services.secrets.tests.support import Secrets
from stellwerk_launcher import ports
from stellwerk_launcher.testing import Servers, plaintext_command
from stellwerk_platform.bus import Bus
from stellwerk_platform.mongo import Database
from stellwerk_protos.runs.v1 import runs_pb2 as pb
from stellwerk_runs.config import RunsSettings
from stellwerk_runs.runs.leases import LeaseStore
from stellwerk_runs.runs.store import RunStore
from stellwerk_runs.runs.trees import Trees

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]
__all__ = ["secrets"]
# Where the service dies, the how-manieth time it comes there.
DEATHS = ("tree.marked:2", "lease.judged:2")
CHILDREN = 4
# Of the tree, a run whose lease ran out before its cancel reached it would be moved once more.
LEASE_SECONDS = 6.0


async def start(settings: RunsSettings, failpoint: str) -> asyncio.subprocess.Process:
    """The service as a process that dies at a place."""
    variables = {
        f"STELLWERK_{one.name.upper()}": str(getattr(settings, one.name)) for one in fields(settings)
    }
    return await asyncio.create_subprocess_exec(
        *plaintext_command("runs", "RunsSettings"),
        env={**os.environ, **variables, "STELLWERK_FAILPOINT": failpoint},
        stderr=asyncio.subprocess.DEVNULL,
    )


async def forest(database: Database) -> tuple[list[str], str]:
    """A tree of interactive runs, three deep, whose root has been asked to stop, and a run beside it."""
    store = RunStore(database)
    leases = LeaseStore(database, store, LEASE_SECONDS)
    trees = Trees(database, store, leases)
    for part in (store, leases, trees):
        await part.open()

    async def create(name: str, parent: str = "") -> str:
        run = pb.Run(
            name=f"workspaces/demo/runs/{name}",
            experiment="workspaces/demo/experiments/e",
            kind=pb.RUN_KIND_INTERACTIVE,
            parent_run=parent,
        )
        return (await store.create(lambda: run, "", chosen=True, beside=leases.grant_in)).name

    top = await create("top")
    tree = [top]
    for number in range(CHILDREN):
        child = await create(f"child-{number}", top)
        tree += [child, await create(f"grandchild-{number}", child)]
    alone = await create("alone")
    await trees.cancel(top, "users/ada", "enough")
    return tree, alone


@asynccontextmanager
async def last_life(settings: RunsSettings, secrets: Secrets) -> AsyncIterator[Client]:
    """Stubs of a service that does not die."""
    process = await start(settings, "")
    try:
        async with as_service(settings, secrets) as client:
            yield client
    finally:
        process.terminate()
        await process.wait()


async def until(client: Client, name: str, state: "pb.RunState.ValueType") -> pb.Run:
    """The run once it has reached a state."""
    async for run in client.runs.WatchRun(pb.WatchRunRequest(name=name), wait_for_ready=True):
        if run.state == state:
            return run
    raise AssertionError(f"{name} ended otherwise")


async def test_a_killed_service_forgets_no_run(servers: Servers, secrets: Secrets) -> None:
    chosen = ports.choose(["registry", "compute", "runs"], {})
    settings = replace(settings_of(servers, secrets, chosen), lease_seconds=LEASE_SECONDS)
    database = Database(settings.mongodb_uri, settings.namespace, "runs")
    await database.open()
    tree, alone = await forest(database)
    for failpoint in DEATHS:
        process = await start(settings, failpoint)
        async with asyncio.timeout(200):
            assert await process.wait() == -signal.SIGKILL, failpoint
    async with asyncio.timeout(200), last_life(settings, secrets) as client:
        for name in tree:
            # Created, asked to stop, stopped because its process was silent: nothing twice.
            assert (await until(client, name, pb.RUN_STATE_CANCELED)).revision == 3
        silent = await until(client, alone, pb.RUN_STATE_NOT_RESPONDING)
        assert silent.reason.code == "LEASE_EXPIRED"
        await client.runs.RenewRun(pb.RenewRunRequest(name=alone))
        await until(client, alone, pb.RUN_STATE_RUNNING)
    assert await database.raw["run_cancels"].count_documents({}) == 0
    database.close()
    async with Bus.connect(settings.nats_url, settings.namespace, "test") as bus:
        for stream in STREAMS:
            await bus.jetstream.delete_stream(bus.names.stream(stream))
